"""How long tests wait for what surely comes."""

PATIENCE_S = 60.0
"""Only so that a test that waits in vain fails, and says for what: on a busy machine all takes many times as long.

Well below the `timeout` of a whole test in setup.cfg, which does not say it.
"""
