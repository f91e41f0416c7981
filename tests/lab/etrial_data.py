#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make ETrial's two halves: the tree under /opt/processmaker, and SQL on standard output whose rows name files in it.

Runs inside the image's chroot while the image is made. The same bytes each time. Some of the files are what copying
tools get wrong: ACLs, extended attributes, hard links, holes, links, odd names, odd modes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path("/opt/processmaker")
CASES = 400
WEB_USER = 33  # www-data, the same on every Debian
NOON = 1_700_000_000

rng = random.Random("etrial")
WORDS = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 10))).decode() for _ in range(800)]


def write(path: Path, size: int, mode: int = 0o644, owner: int = 0) -> None:
    """Make a file of about `size` bytes of text-like content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = " ".join(rng.choices(WORDS, k=max(1, size // 7)))
    path.write_text(text + "\n")
    path.chmod(mode)
    os.chown(path, owner, owner)


def application() -> None:
    """Code, configuration, plugins and translations: many small files that change with releases only."""
    for part, folders, files in (("engine", 40, 25), ("gulliver", 20, 20), ("framework", 15, 20)):
        for folder in range(folders):
            for file in range(files):
                name = f"{rng.choice(WORDS)}_{file}.php"
                write(ROOT / "workflow" / part / f"class{folder:02d}" / name, rng.randint(200, 9000))
    for plugin in ("actionsByEmail", "enterprise", "pmSAML", "storage"):
        for file in range(30):
            write(ROOT / "plugins" / plugin / f"{rng.choice(WORDS)}{file}.php", rng.randint(500, 6000))
    for language in ("en", "de", "fr", "es-ES", "pt-BR", "ja", "zh-CN", "ar"):
        write(ROOT / "shared" / "META-INF" / "translations" / f"processmaker.{language}.po", 60_000)
    for name in ("databases.php", "app.php", "paths_installed.php", "env.ini"):
        write(ROOT / "config" / name, 800, mode=0o640, owner=WEB_USER)


def site() -> list[tuple[str, str, int]]:
    """The users' own files of one trial site; return (case, path in the site, size) of every uploaded document."""
    base = ROOT / "shared" / "sites" / "workflow"
    documents = []
    for _case in range(CASES):
        uid = f"{rng.getrandbits(128):032x}"
        for number in range(rng.randint(1, 5)):
            name = rng.choice(("Invoice {}.pdf", "scan-{}.jpg", "Résumé {}.doc", "契約書{}.pdf", "note {}.txt")).format(number)
            path = base / "files" / uid[:3] / uid[3:6] / uid / name
            write(path, rng.choice((300, 4_000, 20_000)), mode=0o660, owner=WEB_USER)
            documents.append((uid, str(path.relative_to(base)), path.stat().st_size))
    for logo in ("logo.png", "logo-small.png"):
        write(base / "files" / "logos" / logo, 12_000, owner=WEB_USER)
    write(base / "db.php", 700, mode=0o600, owner=WEB_USER)
    return documents


def awkward() -> None:
    """Everything that a file-level copy may lose."""
    base = ROOT / "shared" / "sites" / "workflow" / "public"
    for name in ("with space", "new\nline", "tab\there", "ünïcödé", "-dash", "*star?", "'quote\"", "trailing "):
        write(base / name / "file", 200, owner=WEB_USER)
    os.close(os.open(os.fsencode(base) + b"/latin1-\xe9\xff", os.O_CREAT | os.O_WRONLY, 0o644))
    write(base / "acl.txt", 300)
    subprocess.run(["setfacl", "-m", "u:www-data:rw,g:daemon:r", base / "acl.txt"], check=True)
    (base / "acl-default").mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:www-data:rwx", base / "acl-default"], check=True)
    write(base / "xattr.txt", 300)
    os.setxattr(base / "xattr.txt", "user.checksum", b"sha256:\x00\xff")
    write(base / "hardlink-1", 5000)
    os.link(base / "hardlink-1", base / "hardlink-2")
    os.link(base / "hardlink-1", ROOT / "hardlink-3")
    with (base / "sparse.img").open("wb") as sparse:
        sparse.truncate(64 << 20)
        sparse.seek(32 << 20)
        sparse.write(b"an island")
    (base / "link").symlink_to("hardlink-1")
    (base / "dangling").symlink_to("/nowhere/at all")
    (base / "empty").mkdir()
    (base / "empty-file").touch()
    os.mkfifo(base / "fifo")
    write(base / "setuid", 100)
    (base / "setuid").chmod(0o4755)
    write(base / "unreadable", 100)
    (base / "unreadable").chmod(0o000)
    write(base / "old", 100)
    os.utime(base / "old", ns=(1, 123_456_789))


def sql(documents: list[tuple[str, str, int]]) -> str:
    """Given the documents, return a schema like the application's, with a row for each of them."""
    rows = ",\n".join(f"('{uid}', '{path}', {size})" for uid, path, size in documents)
    cases = ",\n".join(f"('{uid}', 'TO_DO')" for uid in dict.fromkeys(uid for uid, _, _ in documents))
    return f"""CREATE DATABASE wf_workflow DEFAULT CHARACTER SET utf8mb4;
USE wf_workflow;
CREATE TABLE APPLICATION (APP_UID CHAR(32) PRIMARY KEY, APP_STATUS VARCHAR(20)) ENGINE=InnoDB;
CREATE TABLE APP_DOCUMENT (ID INT AUTO_INCREMENT PRIMARY KEY, APP_UID CHAR(32) NOT NULL, PATH VARCHAR(255) NOT NULL,
  SIZE INT NOT NULL, KEY (APP_UID)) ENGINE=InnoDB;
CREATE TABLE APP_HISTORY (ID INT AUTO_INCREMENT PRIMARY KEY, APP_UID CHAR(32), DATA TEXT) ENGINE=InnoDB;
CREATE TABLE LOGIN_LOG (ID INT AUTO_INCREMENT PRIMARY KEY, WHO VARCHAR(50)) ENGINE=MyISAM;
CREATE VIEW OPEN_CASES AS SELECT * FROM APPLICATION WHERE APP_STATUS = 'TO_DO';
INSERT INTO APPLICATION VALUES {cases};
INSERT INTO APP_DOCUMENT (APP_UID, PATH, SIZE) VALUES {rows};
INSERT INTO APP_HISTORY (APP_UID, DATA) SELECT APP_UID, REPEAT(APP_UID, 40) FROM APP_DOCUMENT;
INSERT INTO LOGIN_LOG (WHO) SELECT CONCAT('user', ID) FROM APP_DOCUMENT;
CREATE DATABASE rp_workflow DEFAULT CHARACTER SET utf8mb4;
CREATE TABLE rp_workflow.USERS (ID INT PRIMARY KEY, NAME VARCHAR(50)) ENGINE=InnoDB;
INSERT INTO rp_workflow.USERS VALUES (1, 'admin'), (2, 'Zoë');
"""


def main() -> None:
    os.umask(0o022)
    application()
    documents = site()
    awkward()
    for folder, _, files in os.walk(os.fsencode(ROOT)):
        for file in files:
            path = os.path.join(folder, file)
            if file != b"old":
                os.utime(path, (NOON, NOON), follow_symlinks=False)
    os.makedirs("/backups", mode=0o700)
    sys.stdout.write(sql(documents))


if __name__ == "__main__":
    main()
