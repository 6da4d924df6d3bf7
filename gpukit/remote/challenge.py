"""What a registry asks for when it answers 401: `WWW-Authenticate`, read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

# Longer headers are rubbish; a scope that names a model has a hundred characters.
MOST_OF_A_CHALLENGE = 8192

# What stands between is one class: two stars beside each other take quadratic time over blanks.
_SCHEME = re.compile(r"[\s,]*(bearer|basic)(?=\s|,|$)", re.IGNORECASE)
_PAIR = re.compile(r"[\s,]*(\w+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))")


@dataclass(frozen=True)
class Challenge:
    """`kind` is "bearer" or "basic"; of the first, where a token is had, for whom and for what."""

    kind: str
    realm: str = ""
    service: str = ""
    scopes: tuple[str, ...] = ()

    def token_url(self, **more: str) -> str:
        """The realm with service, scopes and `more` as its query, sorted by key and written as
        Go writes it: the text that is signed is this one."""
        parts = urlsplit(self.realm)
        query = parse_qsl(parts.query, keep_blank_values=True)
        query.append(("service", self.service))
        query += [("scope", scope) for scope in self.scopes]
        query += more.items()
        query.sort(key=lambda pair: pair[0])
        return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), ""))


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges that gpukit can meet, bearer ones first; others are left aside."""
    found = [challenge for header in headers for challenge in _parse(header[:MOST_OF_A_CHALLENGE])]
    return sorted(found, key=lambda challenge: challenge.kind != "bearer")


def _parse(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = 0
    while match := _SCHEME.match(header, at):
        kind, at = match[1].lower(), match.end()
        values: dict[str, str] = {}
        while not _SCHEME.match(header, at) and (pair := _PAIR.match(header, at)):
            quoted = pair[2]
            text = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else pair[3]
            values.setdefault(pair[1].lower(), text)
            at = pair.end()
        scopes = tuple(values.get("scope", "").split())
        challenge = Challenge(kind, values.get("realm", ""), values.get("service", ""), scopes)
        if kind == "basic" or challenge.realm:
            found.append(challenge)
    return found
