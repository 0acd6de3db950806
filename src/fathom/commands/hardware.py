"""The hardware catalogue as the user has it: fathom's, with the changes of a file of their own."""

from __future__ import annotations

from fathom.commands.files import read_text
from fathom.config import environment_data_dir, environment_hardware_file
from fathom.perf.calibration import Calibration, built_in, kept, parse_calibration
from fathom.spec.catalogue import Catalogue, builtin_catalogue
from fathom.spec.hardware import Cluster


def read_catalogue(flag: str | None = None) -> Catalogue:
    """The catalogue with the changes of the file that `--hardware` names, or FATHOM_HARDWARE where
    the flag is not given.

    Raises: ConfigError for a file that cannot be read, and for what is wrong in it.
    """
    path = flag or environment_hardware_file()
    if path is None:
        return builtin_catalogue()
    text = read_text("--hardware" if flag else "FATHOM_HARDWARE", path, "a TOML file")
    return builtin_catalogue().changed(text, path)


def read_calibration(path: str | None, cluster: Cluster) -> Calibration:
    """That of a file, else the newest that `fathom bench calibrate` kept for these GPUs, else the
    one that comes with fathom."""
    if path is None:
        here = [one for one in kept(environment_data_dir()) if one.machine == cluster.gpu.id]
        return max(here, key=lambda one: one.date, default=built_in())
    return parse_calibration(read_text("--calibration", path), path)
