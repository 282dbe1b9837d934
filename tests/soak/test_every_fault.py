"""Every operation on a file of every stage made to fail, with every error."""

import errno

import pytest
from test_faults import NAMES, fail_each, whole  # noqa: F401


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", NAMES)
def test_every_operation(whole, tmp_path, name, error):  # noqa: F811
    count = fail_each(name, whole, tmp_path, [error])
    print(f"\n{name}: {count} operations failed with {errno.errorcode[error]}")
