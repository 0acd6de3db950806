"""What chat and text completions share in their answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from msgspec import UNSET, Struct, UnsetType

from fathom import __version__
from fathom.server.job import Events, Job
from fathom.server.openai.responses import DONE, Response, Usage, event, usage
from fathom.server.openai.schema import ChatRequest, CompletionRequest

FINGERPRINT = f"fathom-{__version__}"

RequestT = TypeVar("RequestT", ChatRequest, CompletionRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIJob(Job[RequestT]):
    """A request. `thinking`: how the wish for reasoning was understood."""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    thinking: dict[str, Any] | None = None

    def response(self, kind: str, choices: list[Any], **more: Any) -> Response:
        """The object around choices."""
        return Response(
            id=self.id,
            object=kind,
            created=self.created_s,
            model=self.model_name,
            choices=choices,
            system_fingerprint=FINGERPRINT,
            **more,
        )

    def said(self) -> dict[str, Any]:
        """What a response says once: how the request was understood."""
        return {"thinking": self.thinking or UNSET, "warnings": self.warnings or UNSET}


JobT = TypeVar("JobT", bound=OpenAIJob[Any])


class Chunks(Events[JobT]):
    """A stream's events; the first says how the request was understood."""

    def __init__(self, job: JobT) -> None:
        super().__init__(job)
        options = job.request.stream_options
        self._is_usage_continuous = options is not None and options.continuous_usage_stats
        self._is_usage_wanted = self._is_usage_continuous or (
            options is not None and options.include_usage
        )
        self._said = job.said()

    def closing(self) -> bytes:
        """The counts, where they are wanted, and the end of the stream."""
        if not self._is_usage_wanted:
            return DONE
        last = self._job.response(self._job.chunk_kind, [], usage=usage(self._tally.counts()))
        return event(last) + DONE

    def _event(self, choice: Struct, **more: Any) -> bytes:
        counts: Usage | UnsetType | None = None if self._is_usage_wanted else UNSET
        if self._is_usage_continuous:
            counts = usage(self._tally.counts())
        said, self._said = self._said, {}
        return event(
            self._job.response(self._job.chunk_kind, [choice], usage=counts, **more, **said)
        )
