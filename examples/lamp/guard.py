"""Who may talk to the server: browsers that ask for this machine, and WebSockets of its own page."""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Guard:
    """A layer around the application that refuses other hosts and origins, and adds the headers of `HEADERS`.

    Another site can make its own name point to this machine, and then read what the server answers ("DNS rebinding").
    So only the names of ``hosts`` are answered, and addresses in numbers, with which that is not possible. A WebSocket
    is not bound to the page's own origin by the browser, so its origin is compared with the host here.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or open a WebSocket, or refuse it in plain words."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if problem := self._problem(scope["type"], Headers(scope=scope)):
            await PlainTextResponse(problem, 400)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def _problem(self, kind: str, headers: Headers) -> str:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._allowed(hosts[0]):
            names = ", ".join(sorted(self.hosts))
            return f"Expected as host a number address or one of: {names}. Got: {', '.join(hosts) or 'none'}.\n"
        if kind == "websocket" and headers.getlist("origin") not in ([f"http://{hosts[0]}"], [f"https://{hosts[0]}"]):
            return f"Expected a WebSocket of the page at {hosts[0]}, got one of another origin.\n"
        return ""

    def _allowed(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self.hosts:
                return True
            ipaddress.ip_address(name)
        except ValueError:  # no number address
            return False
        return True
