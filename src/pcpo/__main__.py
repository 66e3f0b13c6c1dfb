"""`python -m pcpo` is the `pcpo` command."""

from pcpo.cli.main import main

main()
