"""A web server of a test's own, in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def in_thread(handler: Handler) -> Iterator[str]:
    """A server that answers every request by `handler`; its address."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    address: list[str] = []

    async def begin() -> web.AppRunner:
        application = web.Application(client_max_size=1 << 26)
        application.router.add_route("*", "/{rest:.*}", handler)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append("http://{}:{}".format(*runner.addresses[0][:2]))
        return runner

    def work() -> None:
        runner = loop.run_until_complete(begin())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
