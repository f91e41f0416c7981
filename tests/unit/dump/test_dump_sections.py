# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dump consists of, told from its stream: whatever names, rows and programs in it look like."""

from __future__ import annotations

from typing import List, Tuple

import pytest
from _core.dump.sections import Scanner, Section, statements
from _core.dump.take import file_name
from _core.host.errors import StillpointError

HEAD = """/*M!999999\\- enable the sandbox mode */
-- MariaDB dump 10.19  Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)
--
-- Host: localhost    Database: a
-- Current Database: `not a heading, but the name of a database`
-- ------------------------------------------------------

/*!40014 SET @OLD_FOREIGN_KEY_CHECKS=@@FOREIGN_KEY_CHECKS, FOREIGN_KEY_CHECKS=0 */;
-- CHANGE MASTER TO MASTER_LOG_FILE='bin.000042', MASTER_LOG_POS=21512;
"""
FOOT = """/*!40103 SET TIME_ZONE=@OLD_TIME_ZONE */;
-- SET GLOBAL gtid_slave_pos='0-1-85';

-- Dump completed on 2026-11-22 20:03:27
"""
DATABASE = """
--
-- Current Database: `{0}`
--

CREATE DATABASE /*!32312 IF NOT EXISTS*/ `{1}`;

USE `{1}`;
"""
TABLE = """
--
-- Table structure for table `{0}`
--

DROP TABLE IF EXISTS `{1}`;
CREATE TABLE `{1}` (`id` int COMMENT 'it''s; a \\'comment\\'');

--
-- Dumping data for table `{0}`
--

INSERT INTO `{1}` VALUES
(1,'-- Current Database: `x`;\\n--'),
(2,');\\n');
"""
PROGRAM = """
--
-- Dumping routines for database '{0}'
--
/*!50003 SET sql_mode              = '{1}' */ ;
DELIMITER ;;
CREATE PROCEDURE `p`()
BEGIN
-- Current Database: `inside`
/* ';; '
DELIMITER ;
-- Table structure for table `inside` */
SELECT {2}, `;;` # ';;
;
END ;;
DELIMITER ;
/*!50003 SET sql_mode              = @saved_sql_mode */ ;
"""
PLAIN = HEAD + DATABASE.format("shop", "shop") + TABLE.format("order", "order") + FOOT


def read(text: str, size: int = 1 << 20) -> Tuple[List[Tuple[Section, bytes]], Scanner]:
    """Return the pieces of a text that comes in chunks of a size, and the scanner."""
    data, scanner = text.encode(), Scanner()
    pieces = [piece for at in range(0, len(data), size) for piece in scanner.feed(data[at : at + size])]
    return pieces, scanner


def headings(text: str) -> List[Tuple[str, str, str]]:
    pieces, _scanner = read(text)
    return list(dict.fromkeys((section.kind, section.database, section.name) for section, _piece in pieces))


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_the_pieces_are_the_stream_whatever_it_is_cut_into(size: int) -> None:
    text = HEAD + DATABASE.format("a", "a") + TABLE.format("t", "t") + PROGRAM.format("a", "", "'it''s \\' ;;'") + FOOT
    pieces, scanner = read(text, size)
    assert b"".join(piece for _section, piece in pieces) == text.encode()
    assert [section for section, _piece in pieces][-1] == Section("foot")
    assert list(dict.fromkeys(section for section, _piece in pieces)) == list(dict.fromkeys(section for section, _piece in read(text)[0]))
    assert scanner.complete


def test_a_dump_is_cut_at_its_headings() -> None:
    assert headings(PLAIN) == [("head", "", ""), ("database", "shop", ""), ("table", "shop", "order"), ("data", "shop", "order"), ("foot", "", "")]


def test_the_coordinates_that_a_dump_states_are_known() -> None:
    scanner = read(PLAIN)[1]
    assert scanner.position == ("bin.000042", 21512)
    assert scanner.gtid == "0-1-85"


def test_only_a_dump_with_its_last_line_is_complete() -> None:
    assert read(PLAIN)[1].complete
    for cut in range(1, 200):
        assert not read(PLAIN[:-cut])[1].complete
    assert not read(PLAIN.replace(FOOT, "") + "-- Dump completed on 2026-11-22 20:03:27\n")[1].complete


@pytest.mark.parametrize(
    ("name", "heading", "quoted"),
    [
        ("a\nb", "a\n-- b", "a\nb"),
        ("a\nCurrent Database: `x`", "a\n-- Current Database: ``x``", "a\nCurrent Database: ``x``"),
        ("x`;\n-- Table structure for table `y`", "x``;\n-- -- Table structure for table ``y``", "x``;\n-- Table structure for table ``y``"),
        (");\nINSERT INTO `z` VALUES\n(1);", ");\n-- INSERT INTO ``z`` VALUES\n-- (1);", ");\nINSERT INTO ``z`` VALUES\n(1);"),
        ("'\"#/*", "'\"#/*", "'\"#/*"),
    ],
)
def test_a_name_that_looks_like_a_part_of_a_dump_is_a_name(name: str, heading: str, quoted: str) -> None:
    program = PROGRAM.format(name.replace("\n", "\n-- "), "", "1")
    text = HEAD + DATABASE.format(heading, quoted) + TABLE.format(heading, quoted) + program + TABLE.format("last", "last") + FOOT
    assert headings(text) == [
        ("head", "", ""),
        ("database", name, ""),
        ("table", name, name),
        ("data", name, name),
        ("programs", name, ""),
        ("table", name, "last"),
        ("data", name, "last"),
        ("foot", "", ""),
    ]


@pytest.mark.parametrize(("mode", "literal"), [("", "'a\\'; ;;'"), ("NO_BACKSLASH_ESCAPES", "'a\\', ';;'"), ("ANSI_QUOTES", '"a;;"')])
def test_what_stands_in_a_program_is_no_heading_and_no_end(mode: str, literal: str) -> None:
    text = HEAD + DATABASE.format("a", "a") + PROGRAM.format("a", mode, literal) + TABLE.format("t", "t") + FOOT
    assert [kind for kind, _database, _name in headings(text)] == ["head", "database", "programs", "table", "data", "foot"]
    assert "inside" not in str(headings(text))
    assert read(text)[1].complete


def test_the_longest_statement_is_measured_over_all_its_rows() -> None:
    rows = ",\n".join("(%d)" % number for number in range(1000))
    statement = "INSERT INTO `t` (`id`, `a``b`, row_start) VALUES %s;\n" % rows
    text = HEAD + DATABASE.format("a", "a") + statement + FOOT
    for size in (100, 1 << 20):
        assert abs(read(text, size)[1].longest - len(statement)) <= 2


def test_something_else_than_a_dump_is_not_read_into_memory_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_core.dump.sections._LONGEST_OTHER", 1000)
    with pytest.raises(StillpointError, match="this is no dump"):
        read("x" * 5000, 100)


def test_statements_are_told_apart_by_their_ends_not_by_semicolons() -> None:
    assert statements(b"CREATE USER `a;b` IDENTIFIED BY ';\\';';\n\n-- it's\nGRANT USAGE ON *.* TO `a;b`;\n") == [
        b"CREATE USER `a;b` IDENTIFIED BY ';\\';';\n",
        b"GRANT USAGE ON *.* TO `a;b`;\n",
    ]


@pytest.mark.parametrize(
    ("database", "name"),
    [("shop", "shop.sql.zst"), ("a/b%\n", "a%2Fb%25%0A.sql.zst"), (".hidden", "%2Ehidden.sql.zst"), ("Zoë", "Zoë.sql.zst")],
)
def test_a_database_of_any_name_has_a_file_name(database: str, name: str) -> None:
    assert file_name(database) == name
    assert len(file_name("\n" * 64).encode()) < 255
    assert len(file_name("\u0e00" * 64).encode()) < 255
    assert file_name("\u0e7f" * 64) != file_name("\u0e7e" + "\u0e7f" * 63)
