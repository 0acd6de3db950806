"""What chat and text completions share in their answers."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from msgspec import UNSET, Struct, UnsetType, json

from fathom import __version__
from fathom.server.envelope import sse
from fathom.server.job import Job, Reply
from fathom.server.openai.wire import Response, usage

FINGERPRINT = f"fathom-{__version__}"

JobT = TypeVar("JobT", bound=Job[Any])


class OpenAIReply(Reply[JobT]):
    """An answer; the first event of a stream says how the request was understood."""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, job: JobT) -> None:
        super().__init__(job)
        options = job.request.stream_options
        self._is_usage_continuous = options is not None and options.continuous_usage_stats
        self._is_usage_wanted = self._is_usage_continuous or (
            options is not None and options.include_usage
        )
        self._said: dict[str, Any] = {
            "thinking": job.thinking or UNSET,
            "warnings": job.warnings or UNSET,
        }

    def closing(self) -> bytes:
        """The counts, where they are wanted, and the end of the stream."""
        end = sse(b"[DONE]")
        if not self._is_usage_wanted:
            return end
        last = self._response(self.chunk_kind, [], usage=usage(self._tally.counts()))
        return sse(json.encode(last)) + end

    def _all(self, choices: list[Any], **more: Any) -> Response:
        counts = usage(self._tally.counts())
        return self._response(self.kind, choices, usage=counts, **more, **self._said)

    def _event(self, choice: Struct, **more: Any) -> bytes:
        counts: dict[str, Any] | UnsetType | None = None if self._is_usage_wanted else UNSET
        if self._is_usage_continuous:
            counts = usage(self._tally.counts())
        said, self._said = self._said, {}
        told = self._response(self.chunk_kind, [choice], usage=counts, **more, **said)
        return sse(json.encode(told))

    def _response(self, kind: str, choices: list[Any], **more: Any) -> Response:
        """The object around choices."""
        job = self._job
        return Response(
            id=job.id,
            object=kind,
            created=job.created_s,
            model=job.model_name,
            choices=choices,
            system_fingerprint=FINGERPRINT,
            **more,
        )
