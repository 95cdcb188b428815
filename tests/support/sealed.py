#!/usr/bin/env python3
"""A second reader, and writer, of sealed repositories (FORMAT.md section 13), made from the specification alone.

sealed.py open REPOSITORY KEY_FILE TARGET    makes a plain repository of one that is sealed
sealed.py vectors                            prints test vectors, always the same ones

Needs the package `cryptography`, of a version that has Argon2id and AES-GCM-SIV.
"""

import base64
import json
import pathlib
import struct
import sys
import uuid

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

MAGIC = b"IMGSEAL\n"
CHUNK = 64 << 10
TAG = 16
HEAD = 96
NO_NONCE = bytes(12)


def extract(salt, key):
    mac = hmac.HMAC(salt, hashes.SHA256())
    mac.update(key)
    return mac.finalize()


def expand(prk, fields, length=32):
    info = b"".join(struct.pack("<I", len(field)) + field for field in fields)
    return HKDFExpand(hashes.SHA256(), length, info).derive(prk)


class Repository:
    """The keys of a repository."""

    def __init__(self, repository, master):
        self.id, self.master = repository, master
        self.key_id = expand(master, [b"imgsnap key id"], 16)
        self.names = AESGCMSIV(expand(master, [b"imgsnap names", repository.bytes]))

    def seal_name(self, name):
        padded = name.encode()
        padded += bytes(-len(padded) % 32)
        return base64.b32encode(self.names.encrypt(NO_NONCE, padded, b"")).decode().lower().rstrip("=")

    def open_name(self, sealed):
        raw = base64.b32decode(sealed.upper() + "=" * (-len(sealed) % 8))
        return self.names.decrypt(NO_NONCE, raw, b"").rstrip(b"\0").decode()

    def identity(self, name):
        file = name.rsplit("/")[-1]
        if file.endswith(".delta"):
            return b"delta", uuid.UUID(file[: -len(".delta")]).bytes
        kind = b"other"
        for beginning in ("manifest.", "marker."):
            if file.startswith(beginning):
                kind = beginning[:-1].encode()
        if file.endswith(".attachment"):
            kind = b"attachment"
        for beginning in ("config.", "plan."):
            if name.startswith(beginning) and "/" not in name:
                kind = beginning[:-1].encode()
        return kind, self.id.bytes + name.encode()

    def keys(self, told, name):
        prk, (kind, identity) = extract(told[32:64], self.master), self.identity(name)
        key = expand(prk, [b"imgsnap object", told, kind, identity])
        return AESGCM(key), expand(prk, [b"imgsnap commitment", told, kind, identity])

    def seal(self, name, plain, salt):
        told = MAGIC + struct.pack("<II", 1, CHUNK) + self.key_id + salt
        key, commitment = self.keys(told, name)
        chunks = [plain[at : at + CHUNK] for at in range(0, len(plain), CHUNK)] or [b""]
        nonce = lambda number: struct.pack("<QBBBB", number, 0, 0, 0, number + 1 == len(chunks))
        return told + commitment + b"".join(key.encrypt(nonce(n), c, b"") for n, c in enumerate(chunks))

    def open(self, name, sealed):
        told, commitment, body = sealed[:64], sealed[64:HEAD], sealed[HEAD:]
        assert told[:16] == MAGIC + struct.pack("<II", 1, CHUNK) and told[16:32] == self.key_id
        key, expected = self.keys(told, name)
        assert commitment == expected, "another object"
        chunks = [body[at : at + CHUNK + TAG] for at in range(0, len(body), CHUNK + TAG)]
        nonce = lambda number: struct.pack("<QBBBB", number, 0, 0, 0, number + 1 == len(chunks))
        plain = [key.decrypt(nonce(n), c, b"") for n, c in enumerate(chunks)]
        assert plain and (len(chunks) == 1 or plain[-1]), "an empty last chunk"
        return b"".join(plain)


def slot_key(text, slot, given):
    derivation, salt = text["derivation"], bytes.fromhex(text["salt"])
    costs = [derivation.get(cost, 0) for cost in ("memory_kib", "passes", "lanes")]
    if derivation["kind"] == "argon2id":
        kdf = Argon2id(salt=salt, length=32, iterations=costs[1], lanes=costs[2], memory_cost=costs[0])
        given = kdf.derive(given)
    fields = [b"imgsnap key slot", uuid.UUID(text["repository"]).bytes, slot.bytes, bytes.fromhex(text["key"])]
    fields += [derivation["kind"].encode(), struct.pack("<III", *costs)]
    return AESGCM(expand(extract(salt, given), fields))


def unlock(folder, given):
    for path in folder.glob("key.*"):
        text = json.loads(path.read_text().split("\n", 1)[1])
        try:
            key = slot_key(text, uuid.UUID(path.name[len("key.") :]), given)
            master = key.decrypt(NO_NONCE, bytes.fromhex(text["wrapped"]), b"")
        except Exception:
            continue
        repository = Repository(uuid.UUID(text["repository"]), master)
        assert repository.key_id.hex() == text["key"]
        return repository
    sys.exit("no slot opens")


def open_all(source, key_file, target):
    repository = unlock(source, key_file.read_bytes())
    target.mkdir()
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if not path.is_file() or path.name.startswith((".", "key.")) or path.name.endswith(".lock"):
            continue
        if name == "repository.toml":
            (target / name).write_text("version = 2\n")
            continue
        if "/" in name:
            folder, file = name.split("/")
            name = f"{repository.open_name(folder)}/{file}"
            (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(repository.open(name, path.read_bytes()))


def vectors():
    pattern = lambda count, factor: bytes((i * factor + (i >> 8)) % 256 for i in range(count))
    repository = Repository(uuid.UUID(bytes=pattern(16, 3)), pattern(32, 7))
    delta = "vm/" + str(uuid.UUID(bytes=pattern(16, 5))) + ".delta"
    digest = lambda data: (lambda h: (h.update(data), h.finalize())[1])(hashes.Hash(hashes.SHA256())).hex()
    objects = []
    for name in ("config.000001", "vm/manifest.000007", delta, "plan." + str(repository.id)):
        for count in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 17):
            salt = pattern(32, 11 + count % 7)
            sealed = repository.seal(name, pattern(count, 13), salt)
            assert repository.open(name, sealed) == pattern(count, 13)
            objects.append({"name": name, "bytes": count, "salt": salt.hex(), "sealed": digest(sealed)})
    names = [{"name": name, "sealed": repository.seal_name(name)} for name in ("vm", "x" * 32, "x" * 33, "größe", "y" * 128)]
    slots = []
    for derivation in (
        {"kind": "key_file"},
        {"kind": "argon2id", "memory_kib": 8192, "passes": 1, "lanes": 1},
        {"kind": "argon2id", "memory_kib": 16384, "passes": 2, "lanes": 4},
    ):
        slot, salt = uuid.UUID(bytes=pattern(16, 9)), pattern(32, 17)
        text = {"repository": str(repository.id), "key": repository.key_id.hex()}
        text |= {"derivation": derivation, "salt": salt.hex()}
        given = pattern(32, 19) if derivation["kind"] == "key_file" else b"correct horse"
        text["wrapped"] = slot_key(text, slot, given).encrypt(NO_NONCE, repository.master, b"").hex()
        slots.append({"slot": str(slot), "given": given.hex(), "text": text})
    told = {"repository": str(repository.id), "master": repository.master.hex(), "key": repository.key_id.hex()}
    print(json.dumps(told | {"names": names, "objects": objects, "slots": slots}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["open", source, key_file, target]:
            open_all(pathlib.Path(source), pathlib.Path(key_file), pathlib.Path(target))
        case ["vectors"]:
            vectors()
        case _:
            sys.exit(__doc__)
