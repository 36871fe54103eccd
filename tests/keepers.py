"""A provider that keeps things: files, batches, stored responses, conversations. Runs on `ScriptedUpstream`.

    keeper = Keeper()
    async with ScriptedUpstream(keeper.serve) as upstream: ...

It knows one caller, whoever holds its key: whoever asks for an id gets it, and lists list everything. Which key asked
is in `keeper.asked`. A batch and a response in the background are done when the test says so (`finish`).
"""

import asyncio
import itertools
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.upstreams import Peer, ReceivedRequest, answer

_FAR = 4_000_000_000
_PART = re.compile(rb'name="([^"]*)"(?:; filename="([^"]*)")?[^\r\n]*(?:\r\n[^\r\n]+)*\r\n\r\n')


class Keeper:
    """What it keeps, by id."""

    def __init__(self, *, model: str = "m", prefix: str = "") -> None:
        self.model = model
        self._prefix = prefix
        self.objects: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        #: (method, path, authorization) of each request.
        self.asked: list[tuple[str, str, str]] = []
        self.requests: list[ReceivedRequest] = []
        #: What it says in the stream of a response before it waits.
        self.words: list[str] = []
        #: Ids that it fails to tell anything of, and with which status.
        self.failing: dict[str, int] = {}
        self._numbers = itertools.count(1)
        #: Set to let a stream of a response go on after its first event.
        self.go_on = asyncio.Event()
        self.go_on.set()

    def id(self, prefix: str) -> str:
        return f"{prefix}{self._prefix}{next(self._numbers):04d}"

    async def serve(self, peer: Peer) -> None:
        while True:
            request = await peer.receive()
            self.requests.append(request)
            path = request.target.decode().partition("?")[0].removeprefix("/v1")
            authorization = (request.header(b"authorization") or b"").decode()
            self.asked.append((request.method.decode(), path, authorization))
            for piece in self._answer(request, path):
                if piece is None:
                    await self.go_on.wait()
                else:
                    await peer.send(piece)

    def finish(self, object_id: str, *, status: str = "completed", usage: dict[str, Any] | None = None) -> None:
        """A batch or a response is done."""
        found = self.objects[object_id]
        found["status"] = status
        if usage is not None:
            found["usage"] = usage
        if found["object"] == "batch" and status == "completed":
            output = self._add(
                "file-", {"object": "file", "bytes": 2, "filename": "out.jsonl", "purpose": "batch_output"}
            )
            self.contents[output["id"]] = b"{}"
            found["output_file_id"] = output["id"]

    def _add(self, prefix: str, members: dict[str, Any]) -> dict[str, Any]:
        made = {"id": self.id(prefix), "created_at": 1_760_000_000, **members}
        self.objects[made["id"]] = made
        return made

    def _answer(self, request: ReceivedRequest, path: str) -> Iterator[bytes | None]:
        method = request.method.decode()
        _, kind, *rest = path.split("/")
        if method == "POST" and kind == "responses" and not rest:
            yield from self._respond(msgspec.json.decode(request.body))
        elif not rest:
            yield _json(self._collection(method, kind, request))
        elif rest[0] in self.failing:
            yield _json({"error": {"message": "Not now", "type": "server_error"}}, status=self.failing[rest[0]])
        elif rest[0] not in self.objects:
            yield _json({"error": {"message": "No such object", "type": "invalid_request_error"}}, status=404)
        elif kind == "responses" and b"stream=true" in request.target:
            yield from self._stream(self.objects[rest[0]])
        elif rest[1:] == ["parts"]:
            yield _json(self._take_part(rest[0], request.body))
        elif rest[1:] == ["complete"]:
            yield _json(self._complete(rest[0], msgspec.json.decode(request.body)["part_ids"]))
        elif rest[1:] == ["content"]:
            yield answer(self.contents[rest[0]], headers=[(b"content-type", b"application/octet-stream")])
        else:
            yield _json(self._one(method, rest))

    def _collection(self, method: str, kind: str, request: ReceivedRequest) -> dict[str, Any]:
        if method == "GET":
            return {"object": "list", "data": list(self.objects.values()), "has_more": False}
        if kind == "files":
            return self._upload(request.body)
        body = msgspec.json.decode(request.body)
        if kind == "uploads":
            return self._add("upload_", {"object": "upload", "status": "pending", "expires_at": _FAR, **body})
        if kind == "batches":
            members = {
                "object": "batch",
                "status": "validating",
                "endpoint": body["endpoint"],
                "completion_window": "24h",
            }
            return self._add("batch_", members | {"input_file_id": body["input_file_id"]})
        return self._add("conv_", {"object": "conversation", "metadata": {}})

    def _take_part(self, upload_id: str, body: bytes) -> dict[str, Any]:
        part = {"id": self.id("part_"), "object": "upload.part", "created_at": 1_760_000_000, "upload_id": upload_id}
        self.contents[part["id"]] = _fields(body)[0]["data"]
        return part

    def _complete(self, upload_id: str, part_ids: list[str]) -> dict[str, Any]:
        """The parts, in the order asked for, become a file."""
        upload = self.objects[upload_id]
        content = b"".join(self.contents[part_id] for part_id in part_ids)
        members = {"object": "file", "bytes": len(content), "status": "processed"}
        file = self._add("file-", members | {name: upload[name] for name in ("filename", "purpose")})
        self.contents[file["id"]] = content
        upload.update(status="completed", file=file)
        return upload

    def _upload(self, body: bytes) -> dict[str, Any]:
        fields, name = _fields(body)
        made = self._add(
            "file-",
            {
                "object": "file",
                "bytes": len(fields["file"]),
                "filename": name,
                "purpose": fields["purpose"].decode(),
                "status": "processed",
            },
        )
        self.contents[made["id"]] = fields["file"]
        return made

    def _one(self, method: str, rest: list[str]) -> dict[str, Any]:
        found = self.objects[rest[0]]
        if method == "DELETE":
            del self.objects[rest[0]]
            kind = found["object"]
            return {"id": rest[0], "object": f"{kind}.deleted" if kind != "file" else kind, "deleted": True}
        if rest[1:] == ["cancel"]:
            found["status"] = "cancelled"
        return found

    def _respond(self, body: dict[str, Any]) -> Iterator[bytes | None]:
        background = body.get("background", False)
        members: dict[str, Any] = {
            "object": "response",
            "status": "queued" if background else "completed",
            "background": background,
            "model": body["model"],
            "output": [],
            "usage": None if background else {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        made = self._add("resp_", members)
        if not body.get("stream"):
            yield _json(made)
            return
        yield from self._stream(made)

    def _stream(self, made: dict[str, Any]) -> Iterator[bytes | None]:
        created = {"type": "response.created", "sequence_number": 0, "response": made | {"status": "in_progress"}}
        done = {"type": "response.completed", "sequence_number": 1, "response": made | {"status": "completed"}}
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        yield head + _chunk(_event(created))
        for word in self.words:
            yield _chunk(_event({"type": "response.output_text.delta", "sequence_number": 1, "delta": word}))
        yield None
        yield _chunk(_event(done)) + b"0\r\n\r\n"


def _fields(body: bytes) -> tuple[dict[str, bytes], str]:
    """The parts of a form by their names, and the name of the file in it."""
    fields: dict[str, bytes] = {}
    name = ""
    boundary = body.partition(b"\r\n")[0]
    for part in body.split(boundary)[1:-1]:
        found = _PART.search(part)
        assert found is not None
        fields[found[1].decode()] = part[found.end() : -2]
        name = (found[2] or b"").decode() or name
    return fields, name


def _event(document: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (document["type"].encode(), msgspec.json.encode(document))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _json(document: dict[str, Any], *, status: int = 200) -> bytes:
    return answer(msgspec.json.encode(document), status=status, headers=[(b"content-type", b"application/json")])
