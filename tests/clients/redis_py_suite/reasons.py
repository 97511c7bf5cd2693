"""Why tests of redis-py's suite fail without a fault of the proxy's; what matches none of these is a fault.

ONE_SERVER: they fail on one plain Valkey 9.1 too. SAID: what the error says -> why it must. TESTS: tests that fail as a
consequence, by name, where the error does not say so.
"""

from __future__ import annotations

HARD_CODED = "the test goes to port 6379 whatever it was told"
NO_DEBUG = "DEBUG is not for clients"
VALKEY = "the test is for Redis's own answer, the servers are Valkey"
MOCK = "the test replaces a part of the client that hiredis does without"
CLUSTER = "keys in several slots, as in every Redis Cluster"
REFUSED = "refused through the proxy: what changes users, servers or their roles"
SHARED = "refused through the proxy: what makes servers close connections that all share"

ONE_SERVER = {
    "test_client_setinfo": HARD_CODED,
    "test_client_setinfo_with_driver_info": HARD_CODED,
    "test_create_single_connection_client_from_url": HARD_CODED,
    "test_max_connections": HARD_CODED,
    "test_multiple_connections": HARD_CODED,
    "test_retry_connect_on_timeout_error": HARD_CODED,
    "test_reuse_previously_released_connection": HARD_CODED,
    "test_busy_loading_disconnects_socket": NO_DEBUG,
    "test_busy_loading_from_pipeline": NO_DEBUG,
    "test_busy_loading_from_pipeline_immediate_command": NO_DEBUG,
    "test_connect_invalid_auth_credentials_supplied": NO_DEBUG,
    "test_connect_invalid_password_supplied": NO_DEBUG,
    "test_connect_no_auth_configured": NO_DEBUG,
    "test_connect_no_auth_supplied_when_required": NO_DEBUG,
    "test_oom_error": NO_DEBUG,
    "test_read_only_error": NO_DEBUG,
    "test_acl_getuser_setuser": VALKEY,
    "test_lolwut": VALKEY,
    "test_readonly_invalid_cluster_state": VALKEY,
    "test_xgroup_create_entriesread": VALKEY,
    "test_connect_with_retries": MOCK,
}

SAID = {
    "hash to the same slot": CLUSTER,
    "of SORT denied in Cluster mode": CLUSTER,
    "DB index is out of range": "databases other than 0, as in every Redis Cluster",
    "command 'acl|": REFUSED,
    "related to argument 'requirepass'": REFUSED,
    "related to argument 'timeout'": SHARED,
    "command 'bgsave' is not allowed": REFUSED,
    "command 'replicaof' is not allowed": REFUSED,
}

TESTS = {
    "test_exec_error_raised": CLUSTER,
    "test_transaction_with_empty_error_command": CLUSTER,
    "test_get_moveable_keys": REFUSED,  # of MIGRATE, which is not in COMMAND's answer as it is refused
    "test_slowlog_get": "two entries of the same second are of two servers: nobody knows their order",
}


def why(test: str, said: str) -> str:
    """The reason; empty when there is none. test: without parameters; said: the error."""
    for part, reason in SAID.items():
        if part in said:
            return reason
    return TESTS.get(test) or ONE_SERVER.get(test, "")
