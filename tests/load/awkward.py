# SPDX-License-Identifier: GPL-3.0-or-later
"""Databases that a dump may lose something of, as SQL for a client that knows DELIMITER.

python3 awkward.py [MIB] | mariadb --binary-mode --comments --max-allowed-packet=1G
"""

from __future__ import annotations

import sys

#: Names with everything that a client, a comment in a dump or a file name may trip over.
NAMES = (
    "plain",
    "with space",
    "da-sh",
    "quo'te",
    'dou"ble',
    "back`tick",
    "semi;colon",
    "new\nline",
    "per%cent",
    "dot.slash/",
    "-- Current Database: `plain`",
    "ünïcödé",
)
DATABASES = ("awkward", "awk-ward db", "awk`ward;\n-- Current Database: `awkward`", "awkward_empty")

_EVERY_BYTE = bytes(range(256)).hex()

# What a program's body may hold without ending: lines that look like a dump's own.
_BODY = r"""BEGIN
-- Current Database: `awkward`
/*
DELIMITER ;
-- Table structure for table `plain`
*/
  SET @x = 'it''s; a "string" with -- and /* in it
-- Dump completed';
END"""

_SQL = r"""
USE awkward;
CREATE TABLE bytes (id INT PRIMARY KEY, b BLOB, v VARBINARY(300), f BINARY(4), bits BIT(12), t TEXT) ENGINE=InnoDB;
INSERT INTO bytes VALUES (1, X'{every byte}', X'{every byte}', X'00ff', b'101', CONCAT(CHAR(0), CHAR(26), '\\', '''"', CHAR(10), CHAR(13), '%_'));
INSERT INTO bytes VALUES (2, '', '', '', b'0', ''), (3, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE documents (id INT PRIMARY KEY, j JSON, g INT AS (JSON_VALUE(j, '$.n')) STORED, w INT AS (id * 2) VIRTUAL, KEY (g)) ENGINE=InnoDB;
INSERT INTO documents (id, j) VALUES (1, '{"n": 7, "t": "a\\nb \\u00e9 😀"}'), (2, '{"n": 8}');
CREATE TABLE letters (c VARCHAR(50) CHARACTER SET utf8mb4, l VARCHAR(50) CHARACTER SET latin1, e ENUM('a''b', 'ü契'), s SET('x', 'y'))
  ENGINE=InnoDB COMMENT 'two\nlines; it''s';
INSERT INTO letters VALUES ('😀 契約', 'Zoë', 'a''b', 'x,y'), ('-- Dump completed', 'a', 'ü契', '');
SET SESSION sql_mode = '';
CREATE TABLE dates (d DATE NOT NULL DEFAULT '0000-00-00', t DATETIME(6), s TIMESTAMP NULL) ENGINE=InnoDB;
INSERT INTO dates VALUES ('0000-00-00', '0000-00-00', NULL), ('2026-02-00', '9999-12-31 23:59:59.999999', '2026-10-25 01:30:00');
SET SESSION sql_mode = DEFAULT;
CREATE TABLE numbers (i BIGINT UNSIGNED, d DECIMAL(65,30), f FLOAT, e DOUBLE) ENGINE=InnoDB;
INSERT INTO numbers VALUES (18446744073709551615, 12345678901234567890123456789012345.123456789012345678901234567890, 1.17549e-38, 1.7976931348623157e308);
CREATE TABLE parent (id INT PRIMARY KEY) ENGINE=InnoDB;
CREATE TABLE child (p INT, FOREIGN KEY (p) REFERENCES parent (id)) ENGINE=InnoDB;
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1);
CREATE TABLE old_engine (id INT PRIMARY KEY, t VARCHAR(20)) ENGINE=MyISAM;
INSERT INTO old_engine VALUES (1, 'MyISAM');
CREATE TABLE counted (id INT AUTO_INCREMENT PRIMARY KEY, v INT) ENGINE=InnoDB AUTO_INCREMENT=1000;
INSERT INTO counted (v) VALUES (1), (0);
SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO';
INSERT INTO counted VALUES (0, 5);
SET SESSION sql_mode = DEFAULT;
CREATE TABLE parts (id INT, KEY (id)) ENGINE=InnoDB
  PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN MAXVALUE);
INSERT INTO parts VALUES (1), (100);
CREATE VIEW base_view AS SELECT id, t FROM old_engine;
CREATE VIEW a_view_on_it AS SELECT * FROM base_view WHERE id > 0;
CREATE VIEW `z;
-- view` AS SELECT 'a
-- b' AS c FROM a_view_on_it;
CREATE DEFINER='gone'@'nowhere.example' SQL SECURITY DEFINER VIEW orphan_view AS SELECT id FROM parent;
DELIMITER ;;
CREATE DEFINER='gone'@'nowhere.example' PROCEDURE orphan()
{body};;
CREATE FUNCTION twice(n INT) RETURNS INT DETERMINISTIC
-- DELIMITER ;
RETURN n * 2;;
SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES';;
CREATE PROCEDURE "other mode"() SELECT '\', ';; -- Current Database: `x`';;
SET SESSION sql_mode = DEFAULT;;
CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2026-01-01 02:00:00' DISABLE COMMENT 'it''s' DO
{body};;
CREATE TRIGGER counting BEFORE INSERT ON counted FOR EACH ROW
BEGIN
-- Current Database: `awkward_empty`
SET NEW.v = NEW.v + 1;
END;;
CREATE DEFINER='gone'@'nowhere.example' TRIGGER orphan_trigger AFTER DELETE ON counted FOR EACH ROW SET @gone = OLD.id;;
DELIMITER ;
"""


def quoted(name: str) -> str:
    """Return a name as SQL."""
    return "`%s`" % name.replace("`", "``")


def sql(large_mib: int = 0) -> str:
    """Return the statements that make the databases.

    :param large_mib: size of a row that is larger than most packets
    """
    lines = ["SET NAMES utf8mb4;"]
    lines += ["CREATE DATABASE %s DEFAULT CHARACTER SET utf8mb4;" % quoted(name) for name in DATABASES]
    lines.append(_SQL.replace("{every byte}", _EVERY_BYTE).replace("{body}", _BODY))
    for database in DATABASES[1:3]:
        lines.append("USE %s;" % quoted(database))
        for number, name in enumerate(NAMES):
            table, column, engine = quoted(name), quoted("c " + name), "MyISAM" if number == 1 else "InnoDB"
            lines.append("CREATE TABLE %s (id INT PRIMARY KEY, %s VARCHAR(100)) ENGINE=%s;" % (table, column, engine))
            lines.append("INSERT INTO %s VALUES (%d, ');\\n-- Table structure for table `plain`\\n');" % (table, number))
        lines.append("CREATE VIEW %s AS SELECT * FROM %s;" % (quoted("view of back`tick"), quoted("back`tick")))
    if large_mib:
        lines.append("CREATE DATABASE awkward_large;")
        lines.append("CREATE TABLE awkward_large.large (id INT PRIMARY KEY, b LONGBLOB) ENGINE=InnoDB;")
        lines.append("INSERT INTO awkward_large.large VALUES (1, REPEAT(X'00ff27c3', %d)), (2, 'after it');" % (large_mib << 18))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(sql(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
