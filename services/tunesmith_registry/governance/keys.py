"""The key receipts are signed with: ed25519, made at the first start, never shown."""

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tunesmith.errors import InvalidArgument

FILE = "signing.key"


class SigningKey:
    """A private key; `public` is its public half, 32 bytes as hexadecimal."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw().hex()
        self.key_id = key_id(self.public)

    @classmethod
    def load(cls, given: str, folder: Path) -> "SigningKey":
        """Returns the key given as 64 hexadecimal digits, else that of the folder, made if it is not there.

        Raises:
            InvalidArgument: what is given is no key.
        """
        text = given or _kept(folder / FILE)
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text)))
        except ValueError:
            raise InvalidArgument(
                "SETTING_INVALID",
                "the signing key is no ed25519 key",
                field="TUNESMITH_REGISTRY_SIGNING_KEY" if given else FILE,
                remedy="give 64 hexadecimal digits, or none: then one is made in the data folder",
            ) from None

    def sign(self, digest: str) -> str:
        """Signs the 64 characters of a digest; hexadecimal."""
        return self._key.sign(digest.encode()).hex()


def _kept(path: Path) -> str:
    if not path.exists():
        made = Ed25519PrivateKey.generate().private_bytes_raw().hex()
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=0o600)
        temporary.write_text(made + "\n")
        temporary.rename(path)
    return path.read_text().strip()


def key_id(public: str) -> str:
    """Returns the short name of a public key."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:16]


def is_signed(public: str, digest: str, signature: str) -> bool:
    """Tells whether a signature is that of this key over this digest."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(
            bytes.fromhex(signature), digest.encode()
        )
    except (InvalidSignature, ValueError):
        return False
    return True
