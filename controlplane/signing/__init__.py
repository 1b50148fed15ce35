"""Signing what sidecars are sent, so that they need to trust no one between."""

from controlplane.signing.keyfiles import SETTING, KeyFiles, new_key, public_pem
from controlplane.signing.signatures import Signatures, Signer

__all__ = ["SETTING", "KeyFiles", "Signatures", "Signer", "new_key", "public_pem"]
