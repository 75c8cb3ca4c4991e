import pytest
from round_library import liberty

from tapeout.physical.pdk import find


@pytest.fixture
def pdk(tmp_path):
    """The library of `round_library`."""
    (tmp_path / "osu018_stdcells.lib").write_text(liberty())
    return find(str(tmp_path))
