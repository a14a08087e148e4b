"""What tests of the data commands share."""

import json

import pytest

from data import prepare


@pytest.fixture
def run(capsys):
    """Prepares in this process: (exit code, JSON of the last line, stderr)."""

    def command(*argv):
        try:
            code = prepare.main([str(a) for a in argv])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if code == 0 else None, err

    return command
