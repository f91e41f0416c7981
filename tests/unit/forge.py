# SPDX-License-Identifier: GPL-3.0-or-later
"""restic's format as a thief writes it who has the repository's password: keys, packs, indexes, snapshots and locks that say what they like.

https://restic.readthedocs.io/en/stable/100_references.html
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

DATA, TREE = 0, 1


def _openssl(cipher: str, key: bytes, text: bytes, iv: bytes = b"") -> bytes:
    argv = ["openssl", "enc", "-e", "-" + cipher, "-K", key.hex(), *(["-iv", iv.hex()] if iv else ["-nopad"])]
    return subprocess.run(argv, input=text, stdout=subprocess.PIPE, check=True).stdout


@dataclass(frozen=True)
class Key:
    """A key of restic: AES-256 in counter mode, and Poly1305-AES over the result."""

    encrypt: bytes
    k: bytes
    r: bytes

    @classmethod
    def of_password(cls, password: str, salt: bytes, n: int, r: int, p: int) -> "Key":
        derived = hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, dklen=64, maxmem=1 << 30)
        return cls(derived[:32], derived[32:48], derived[48:])

    @classmethod
    def of_file(cls, path: Path, password: str) -> "Key":
        """Return the repository's master key, out of a key file."""
        text = json.loads(path.read_bytes())
        salt, data = (base64.b64decode(text[name]) for name in ("salt", "data"))
        found = json.loads(cls.of_password(password, salt, text["N"], text["r"], text["p"]).opened(data))
        return cls(*(base64.b64decode(each) for each in (found["encrypt"], found["mac"]["k"], found["mac"]["r"])))

    def file(self, password: str, user: str) -> bytes:
        """Return a key file for a password that costs next to nothing to open."""
        salt = secrets.token_bytes(64)
        text = [base64.b64encode(each).decode() for each in (self.encrypt, self.k, self.r)]
        inner = json.dumps({"mac": {"k": text[1], "r": text[2]}, "encrypt": text[0]}).encode()
        data = Key.of_password(password, salt, 2, 1, 1).sealed(inner)
        encoded = {"salt": base64.b64encode(salt).decode(), "data": base64.b64encode(data).decode()}
        head = {"created": "2026-01-01T00:00:00Z", "username": user, "hostname": "test", "kdf": "scrypt", "N": 2, "r": 1, "p": 1}
        return json.dumps({**head, **encoded}).encode()

    def sealed(self, text: bytes) -> bytes:
        nonce = secrets.token_bytes(16)
        hidden = _openssl("aes-256-ctr", self.encrypt, text, nonce)
        return nonce + hidden + self._mac(nonce, hidden)

    def opened(self, data: bytes) -> bytes:
        nonce, hidden, mac = data[:16], data[16:-16], data[-16:]
        assert mac == self._mac(nonce, hidden), "this is not sealed by this key"
        return _openssl("aes-256-ctr", self.encrypt, hidden, nonce)  # counter mode: the same both ways

    def _mac(self, nonce: bytes, text: bytes) -> bytes:
        r = int.from_bytes(self.r, "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
        total = 0
        for at in range(0, len(text), 16):
            total = (total + int.from_bytes(text[at : at + 16] + b"\x01", "little")) * r % ((1 << 130) - 5)
        secret = int.from_bytes(_openssl("aes-128-ecb", self.k, nonce), "little")
        return ((total + secret) % (1 << 128)).to_bytes(16, "little")


@dataclass(frozen=True)
class Blob:
    """A piece of a file or a tree, as a pack's header names it, whatever it holds."""

    kind: int
    id: str
    text: bytes

    @classmethod
    def honest(cls, kind: int, text: bytes) -> "Blob":
        return cls(kind, hashlib.sha256(text).hexdigest(), text)


def pack(key: Key, blobs: Sequence[Blob]) -> Tuple[bytes, List[Dict[str, Any]]]:
    """Return a pack, and what an index says of it."""
    body, header, listed = b"", b"", []
    for blob in blobs:
        sealed = key.sealed(blob.text)
        header += struct.pack("<BI", blob.kind, len(sealed)) + bytes.fromhex(blob.id)
        listed.append({"id": blob.id, "type": ("data", "tree")[blob.kind], "offset": len(body), "length": len(sealed)})
        body += sealed
    sealed = key.sealed(header)
    return body + sealed + struct.pack("<I", len(sealed)), listed


def index(key: Key, packs: Dict[str, List[Dict[str, Any]]]) -> bytes:
    """Return an index that says of packs what it likes."""
    return key.sealed(json.dumps({"packs": [{"id": name, "blobs": blobs} for name, blobs in packs.items()]}).encode())


def tree(*nodes: Dict[str, Any]) -> bytes:
    """Return a tree of these nodes as restic writes it."""
    full = [{"mode": 0o644, "mtime": "2026-01-01T00:00:00Z", "uid": 0, "gid": 0, "type": "file", **node} for node in nodes]
    return json.dumps({"nodes": full}, separators=(",", ":")).encode() + b"\n"


def snapshot(key: Key, **fields: Any) -> bytes:
    """Return a snapshot with these fields."""
    return key.sealed(json.dumps({"time": "2026-01-01T00:00:00Z", "paths": ["/"], "hostname": "db1", **fields}).encode())


def name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def master_key(repository: Path, password: str) -> Key:
    """Return the master key of a repository that this password opens."""
    for each in sorted(os.listdir(repository / "keys")):
        try:
            return Key.of_file(repository / "keys" / each, password)
        except AssertionError:
            continue
    raise AssertionError("no key of %s opens with this password" % repository)
