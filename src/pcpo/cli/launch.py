"""`pcpo train --launch FILE`: accelerate's launcher, run on ourselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcpo.errors import ConfigError, one_line


def launch(config_file: Path, arguments: Sequence[str]) -> int:
    """Run `pcpo train` with these arguments in the processes that accelerate's configuration file names.

    Returns 0, or the exit code of the process that failed first (128 + n: ended by signal n). Raises ConfigError when
    the file cannot be read.
    """
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        load_config_from_file(str(config_file))
    except Exception as error:  # whatever accelerate's reader and YAML make of a file that is none
        raise ConfigError(
            f"accelerate cannot read it ({one_line(error)})",
            where=str(config_file),
            fix="start from one of configs/accelerate, or make one with `accelerate config`",
        ) from error
    parsed = launch_command_parser().parse_args(
        ["--config_file", str(config_file), "--module", "pcpo", "train", *arguments]
    )
    try:
        launch_command(parsed)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
