"""How far the machine's clock may be from the control plane's signed time."""

from __future__ import annotations

from typing import Final

MAX_OFFSET_S: Final = 30.0
"""Beyond it, either way, no exemption applies: logins, devices and grants are as old as the clock says."""
