"""What goes wrong with one prompt job.

`Failure` is both the exception that the pipeline's rungs raise and the value that `retry.decide` looks at.
It never carries a key or a piece of a prompt: its text is written where it is raised and in the codecs, from the
error's class, the host and the provider's short error names. The provider's own words stay in `provider_body`,
which goes into the job's result and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .secret import STRUCK

if TYPE_CHECKING:
    from tasks.errors import ErrorCode
    from tasks.results import Usage
    from tasks.wire.kinds import Api

__all__ = ["Failure", "Incapable", "OverLimit", "Unserved"]


class Failure(Exception):
    """One named failure of a job or of one of its attempts.

    `retryable` says whether the same request may succeed later; `retry_after_s` is what the provider asked us
    to wait, in seconds; `provider_body` is its own text, already cut. `suspected_payment`: the request had been sent
    whole when the call ended without an answer. `unreachable`: no call was made: no connection to the provider came to
    stand, or none was tried. `outlasts`: the provider is out, and the job may wait until it works. `is_refusal`: the
    provider refused the request before a model saw it. `is_cut`: the limit on tokens was met before there was an
    answer. `has_no_room`: the flex tier refused it, so no limit was hit, and nothing is out. `usage` is what the
    provider counted for a call that brought no answer.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        http_status: int | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        provider_body: str | None = None,
        request_id: str | None = None,
        suspected_payment: bool = False,
        unreachable: bool = False,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.http_status = http_status
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.provider_body = provider_body
        self.request_id = request_id
        self.suspected_payment = suspected_payment
        self.unreachable = unreachable
        self.usage = usage
        self.is_refusal = False
        self.is_cut = False
        self.outlasts = False
        self.has_no_room = False

    def twin(self) -> Failure:
        """The same for another job that the call was made for: each job's is changed on its way up."""
        twin = type(self).__new__(type(self), *self.args)
        twin.__dict__.update(self.__dict__)
        return twin

    def advise(self, advice: str) -> None:
        """Say what to do about it, after what is wrong."""
        self.message = f"{self.message}; {advice}"
        self.args = (self.message,)

    def hide(self, secret: str) -> None:
        """Strike `secret` from every text: gateways are known to echo the key that they refuse."""
        self.message = self.message.replace(secret, STRUCK)
        self.args = (self.message,)
        if self.provider_body is not None:
            self.provider_body = self.provider_body.replace(secret, STRUCK)
        if self.request_id is not None:
            self.request_id = self.request_id.replace(secret, STRUCK)


class Unserved(Failure):
    """The model can't do what the job asks for, and was not called; another model may."""


class Incapable(Unserved):
    """This worker lacks the model, a key for it, or an endpoint of its provider; another worker may have them."""

    lacks_api: Api | None = None
    """The endpoint, where its catalogue knows the model without it."""


class OverLimit(Unserved):
    """The request is larger than the model's limit can ever let through; another model's may."""
