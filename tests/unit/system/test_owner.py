"""proxy.system.owner: names and numbers of users and groups. Its faults in a file: tests/unit/config/test_values.py."""

import grp
import os
import pwd

import pytest

from proxy.system.owner import Owner, find_owner


def test_owners():
    user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(os.getegid())
    assert find_owner("") == Owner()
    assert find_owner(f"{user.pw_name}:{group.gr_name}") == Owner(
        f"{user.pw_name}:{group.gr_name}", user.pw_uid, group.gr_gid
    )
    assert (find_owner("1234").uid, find_owner(":1234").gid, str(find_owner("0:1"))) == (1234, 1234, "0:1")


@pytest.mark.parametrize(
    "written", [33, 1.5, None, [], ":", "0:", "1:2:3", "4294967295", "no-such-user", ":no-such-group"]
)
def test_no_owners(written):
    with pytest.raises(ValueError, match=r"should be user|not the number|there is no"):
        find_owner(written)
