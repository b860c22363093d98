"""The kinds of events: names, API events and route suffixes as documented, and what real servers make of them.

The 19 documented kinds are those of Evolution API's webhooks page, to the letter, with its traps: `SEND_MESSAGE` has
the suffix `/send-messages`, `GROUP_PARTICIPANTS_UPDATE` has `/groups-participants-update`, `NEW_TOKEN` is the API
event `new.jwt`, and `MESSAGES_*` are documented as `message.*` while servers send `messages.*`. The others are what
servers of the 1.8 and 2.x lines emit beyond that page.
"""

import difflib
import re
from typing import Literal

from msgspec import Struct

RouteStyle = Literal["documented", "evolution"]

UNKNOWN_KIND_MAX_LENGTH = 64

_WELL_FORMED = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*", re.ASCII | re.IGNORECASE)
_TO_UNDERSCORE = str.maketrans(".-", "__")


class Kind(Struct, frozen=True):
    """One row of the catalogue.

    `name` is canonical and what we write everywhere; `api_event` and `suffix` are the documented ones;
    `server_event` is what servers send and `aliases` are other spellings found in the wild.
    """

    name: str
    api_event: str
    suffix: str
    server_event: str
    aliases: tuple[str, ...] = ()
    documented: bool = True

    @property
    def evolution_suffix(self) -> str:
        """The suffix that v2 servers compute: the event string with `.` and `_` turned to `-`."""
        return "/" + self.server_event.replace(".", "-").replace("_", "-")

    def suffix_in(self, style: RouteStyle) -> str:
        """Return the route suffix under `style`, with its leading slash."""
        return self.suffix if style == "documented" else self.evolution_suffix


def _documented(name: str, api_event: str = "", suffix: str = "", server_event: str = "", *aliases: str) -> Kind:
    api_event = api_event or name.lower().replace("_", ".")
    return Kind(
        name, api_event, suffix or "/" + name.lower().replace("_", "-"), server_event or api_event, tuple(aliases)
    )


def _emitted(name: str, event: str) -> Kind:
    return Kind(name, event, "/" + event.replace(".", "-"), event, documented=False)


KINDS: tuple[Kind, ...] = (
    _documented("APPLICATION_STARTUP"),
    _documented("QRCODE_UPDATED"),
    _documented("CONNECTION_UPDATE"),
    _documented("MESSAGES_SET", "message.set", "", "messages.set"),
    _documented("MESSAGES_UPSERT", "message.upsert", "", "messages.upsert"),
    _documented("MESSAGES_UPDATE", "message.update", "", "messages.update"),
    _documented("MESSAGES_DELETE", "message.delete", "", "messages.delete"),
    _documented("SEND_MESSAGE", "", "/send-messages", "", "SEND_MESSAGES", "send-message"),
    _documented("CONTACTS_SET"),
    _documented("CONTACTS_UPSERT"),
    _documented("CONTACTS_UPDATE"),
    _documented("PRESENCE_UPDATE"),
    _documented("CHATS_SET"),
    _documented("CHATS_UPDATE"),
    _documented("CHATS_UPSERT"),
    _documented("GROUPS_UPSERT"),
    # Servers name it GROUP_UPDATE in their settings and groups.update in their events, and so never deliver it.
    _documented("GROUPS_UPDATE", "", "", "", "GROUP_UPDATE", "group.update"),
    _documented(
        "GROUP_PARTICIPANTS_UPDATE",
        "group-participants.update",
        "/groups-participants-update",
        "",
        "GROUPS_PARTICIPANTS_UPDATE",
        "group.participants.update",
        "groups-participants.update",
        "group-participants-update",
    ),
    _documented("NEW_TOKEN", "new.jwt", "", "", "NEW_JWT", "NEW_JWT_TOKEN", "new-jwt"),
    _emitted("MESSAGES_EDITED", "messages.edited"),
    _emitted("SEND_MESSAGE_UPDATE", "send.message.update"),
    _emitted("CHATS_DELETE", "chats.delete"),
    _emitted("LABELS_EDIT", "labels.edit"),
    _emitted("LABELS_ASSOCIATION", "labels.association"),
    _emitted("CALL", "call"),
    _emitted("TYPEBOT_START", "typebot.start"),
    _emitted("TYPEBOT_CHANGE_STATUS", "typebot.change-status"),
    _emitted("REMOVE_INSTANCE", "remove.instance"),
    _emitted("LOGOUT_INSTANCE", "logout.instance"),
    _emitted("INSTANCE_CREATE", "instance.create"),
    _emitted("INSTANCE_DELETE", "instance.delete"),
    _emitted("STATUS_INSTANCE", "status.instance"),
    _emitted("MESSAGING_HISTORY_SET", "messaging-history.set"),
    _emitted("CHAMA_AI_ACTION", "chama-ai.action"),
)


def _folded(spelling: str) -> str:
    """Fold case, separators and a leading slash away: every spelling of one kind that we know folds to few forms."""
    return spelling.lower().removeprefix("/").translate(_TO_UNDERSCORE)


_BY_NAME = {kind.name: kind for kind in KINDS}
_BY_SPELLING = {
    _folded(spelling): kind
    for kind in KINDS
    for spelling in (
        kind.name, kind.api_event, kind.suffix, kind.server_event, kind.evolution_suffix, *kind.aliases,
    )
}  # fmt: skip


def find(spelling: str) -> Kind | None:
    """Return the kind that `spelling` (name, API event, suffix or alias, in any case) means, or None."""
    return _BY_NAME.get(spelling) or _BY_SPELLING.get(_folded(spelling))


def unknown(event: str) -> Kind | None:
    """Return a kind for a well-formed event string that no row knows (a newer server's), or None if ill-formed."""
    if len(event) > UNKNOWN_KIND_MAX_LENGTH or not _WELL_FORMED.fullmatch(event):
        return None
    event = event.lower()
    return _emitted(event.translate(_TO_UNDERSCORE).upper(), event)


def named(name: str) -> Kind:
    """Return the kind with the canonical `name`, be it a row or the name that `unknown` made."""
    return _BY_NAME.get(name) or _emitted(name, name.lower().replace("_", "."))


def nearest(spelling: str) -> str:
    """Return the canonical name that looks most like `spelling`, for error messages."""
    close = difflib.get_close_matches(_folded(spelling[:UNKNOWN_KIND_MAX_LENGTH]), _BY_SPELLING, n=1, cutoff=0.0)
    return _BY_SPELLING[close[0]].name
