"""The content of a chat message as Anthropic's blocks: text, pictures, documents.

Rules:
- Empty text is left out: Anthropic refuses a block of nothing but white space.
- What Anthropic has no block for is refused, naming the part. Nothing is left out without a word.
"""

import base64
from typing import Any

import msgspec

from gateway.api import BadRequest
from gateway_adapters.anthropic.chat import NOTHING, Content, Part
from gateway_adapters.chat_request import File, data_of

#: Anthropic's blocks; what is in them is built here and in `messages.py` alone.
Block = dict[str, Any]  # Any: the values of JSON

EPHEMERAL = {"type": "ephemeral"}
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_PDF = "application/pdf"
#: Anthropic's own file ids; those of others are of no use to it.
_FILE_ID = "file_"
#: Anthropic's own blocks that a caller may send as they are.
_OWN = frozenset({"image", "document", "search_result"})


def blocks_of(content: Content, *, param: str) -> list[Block]:
    """The blocks of a content; `param` names it in what is said about it.

    Raises:
        BadRequest: a part is malformed, or of a kind that can't be told.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    blocks: list[Block] = []
    for number, part in enumerate(content):
        if isinstance(part, str):
            blocks += blocks_of(part, param=param)
            continue
        block = _block(part, f"{param}[{number}]")
        if block is not None:
            blocks.append(mark(block, part.cache_control, part.prompt_cache_breakpoint))
    return blocks


def mark(block: Block, *marks: msgspec.Raw) -> Block:
    """`block` with the first of these cache marks that is one: the prompt up to here is to be kept."""
    for raw in marks:
        found = bytes(raw)
        if found.startswith(b"{"):
            # OpenAI's own mark says nothing that Anthropic's could be made of.
            block["cache_control"] = raw if b'"type"' in found and raw is marks[0] else EPHEMERAL
            break
    return block


def is_kept_file(block: Block) -> bool:
    """Whether a block is about a file that the provider keeps, which is a beta of its own."""
    source = block.get("source")
    return b'"file_id"' in bytes(source) if isinstance(source, msgspec.Raw) else bool(source and "file_id" in source)


def text_of(content: Content, *, param: str) -> list[Block]:
    """The blocks of a content that may be text alone.

    Raises:
        BadRequest: it is more than that.
    """
    blocks = blocks_of(content, param=param)
    for block in blocks:
        if block["type"] != "text":
            raise BadRequest("Only text can be told to this model here.", param=param)
    return blocks


def _block(part: Part, param: str) -> Block | None:
    match part.type:
        case "text" | "input_text" | "output_text":
            return _text(part.text)
        case "refusal":
            return _text(part.refusal)
        case "image_url":
            url = part.image_url if isinstance(part.image_url, str) else part.image_url and part.image_url.url
            if not url:
                raise BadRequest("`image_url` has no `url`.", param=param)
            return _linked(url, param)
        case "file":
            return _file(part.file or File(), param)
        case kind if kind in _OWN and part.source is not NOTHING:
            block: Block = {"type": kind, "source": part.source}
            for name in ("title", "context", "citations"):
                if (value := getattr(part, name)) is not NOTHING:
                    block[name] = value
            return block
        case kind:
            shown = kind[:40] if kind.isprintable() else "?"
            raise BadRequest(f"This model takes no content of type `{shown}`.", param=param, code="unsupported_value")


def _text(text: str | None) -> Block | None:
    return {"type": "text", "text": text} if text is not None and text.strip() else None


def _linked(url: str, param: str) -> Block:
    """A picture: in the URL itself, or where it leads."""
    if url[:5].lower() == "data:":
        return _encoded(url, param, title=None)
    if url[:8].lower() != "https://" and url[:7].lower() != "http://":
        raise BadRequest("An image must be a data: or an https: URL.", param=param, code="invalid_image_url")
    return {"type": "image", "source": {"type": "url", "url": url}}


def _file(file: File, param: str) -> Block:
    if file.file_data:
        data = file.file_data
        # Some leave out all but the base64 digits.
        url = data if data[:5].lower() == "data:" else f"data:;base64,{data}"
        return _encoded(url, param, title=file.filename)
    if file.file_id and file.file_id.startswith(_FILE_ID):
        return {"type": "document", "source": {"type": "file", "file_id": file.file_id}}
    raise BadRequest("A file must come with its data: this provider has no file of that id.", param=param)


def _encoded(url: str, param: str, *, title: str | None) -> Block:
    """A picture, a PDF or a text in a data: URL."""
    found = data_of(url, param=param)
    assert found is not None
    label, data = found
    if label in _IMAGES:
        return {"type": "image", "source": {"type": "base64", "media_type": label, "data": data}}
    document: Block = {"type": "document"}
    if label == _PDF:
        document["source"] = {"type": "base64", "media_type": _PDF, "data": data}
    elif label.startswith("text/") or label in ("application/json", "application/xml"):
        document["source"] = {"type": "text", "media_type": "text/plain", "data": _plain(data, param)}
    else:
        raise BadRequest(
            "This model takes pictures (JPEG, PNG, GIF, WebP), PDF and text; this is something else.",
            param=param,
            code="unsupported_value",
        )
    if title:
        document["title"] = title
    return document


def _plain(data: str, param: str) -> str:
    try:
        return base64.b64decode(data).decode("utf-8")
    except ValueError:
        raise BadRequest("The file's data is not text in UTF-8.", param=param) from None
