"""`sessiond run`: the daemon."""

from __future__ import annotations

import argparse
import gc
import os

from sessiond.cli.connecting import add_command, add_connection_options, load_configuration


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "run",
        help="run the daemon in the foreground",
        description="Run the daemon until Ctrl-C or SIGTERM. Without a Redis URL it starts and "
        "owns an embedded server in the data folder.",
    )
    add_connection_options(parser)
    parser.add_argument("--redis-url", metavar="URL", help="the Redis to use (redis.url)")
    parser.add_argument(
        "--redis-port", type=int, metavar="PORT", help="a loopback port of the embedded server"
    )
    parser.add_argument("--host", help="serve the API on this loopback address, too (api.host)")
    parser.add_argument("--port", type=int, help="and on this port; 0 for a free one (api.port)")
    parser.add_argument("--instance", help="this daemon's name (sync.instance)")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    import uvloop  # noqa: PLC0415 - the daemon's parts stay out of the other commands' start

    from sessiond.daemon.daemon import Daemon  # noqa: PLC0415

    host = options.host or ("127.0.0.1" if options.port is not None else None)
    configuration = load_configuration(
        options,
        redis__url=options.redis_url,
        redis__embedded__port=options.redis_port,
        api__host=host,
        api__port=options.port,
        sync__instance=options.instance,
    )

    async def run() -> None:
        _tune_collector()
        await Daemon(configuration, os.environ).run()

    uvloop.run(run())


def _tune_collector() -> None:
    """Spare the garbage collector what lives as long as the daemon, and most of its rounds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
