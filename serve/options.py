"""The options and arguments that several commands share; what they mean is in serve/service.py."""

from typing import Annotated, Literal

import typer

Target = Annotated[str, typer.Argument(metavar="TARGET", help="pkg.module:flow or file.py:flow.", show_default=False)]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run: its id, a unique beginning of it, or its session.", show_default=False)]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where runs are recorded; default: GECKO_STORAGE, else where the workflow to run says, else ./.gecko.",
        show_default=False,
    ),
]
Executor = Annotated[
    Literal["ray", "inline"] | None, typer.Option(help="Where bodies run; default: on Ray where this process is connected to one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
