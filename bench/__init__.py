"""portguard beside its peers: `make bench`, or `python -m bench --help`.

    peers      how to start HAProxy, nginx, stunnel and portguard alike
    upstream   what stands behind them: a sink, a source and an echo, in a process of their own
    load       the client: streams, round trips, connects, sessions that stay
    measure    CPU time and memory of a process and all that it started; facts about the machine
    figures    what is measured, in which unit, and what portguard wants to reach
    report     medians, the table, the picture

Everything stays on the loopback interface, and ends with the command. CPU time is that of the proxy alone: the
client and the upstream may be slow, they must not be wrong. A transfer whose bytes are not the ones that were sent
makes its figure void.
"""
