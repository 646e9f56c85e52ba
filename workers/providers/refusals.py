"""What a provider's refusal means: HTTP status, the short names in its error body, and its sentence, to our codes.

A name says more than the status: a 429 may be an empty account, a 400 a filter. Where names and status contradict each
other, or say nothing, the sentence decides. It is never repeated: it quotes keys and prompts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..prompt.failure import Failure
from .error_body import ErrorBody, error_body, error_of
from .retry_after import retry_after_s

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tasks.errors import ErrorCode

    from .codec import RawResponse

__all__ = ["refusal", "refusal_within", "with_evidence"]

PROVIDER_BODY_BYTES = 4_096
"""How much of a provider's error body goes into the result."""

_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class _Rule:
    code: ErrorCode
    text: str
    retryable: bool = False


_AUTH = _Rule("auth", "the provider refused the key")
_PERMISSION = _Rule("permission", "the key may not use this model or feature")
_QUOTA = _Rule("quota_exhausted", "the provider's account has no credit left; waiting does not help")
_TOO_LARGE = _Rule("too_large", "the request is larger than the model's context or the provider's size limit")
_ABOVE_LIMIT = _Rule(
    "too_large",
    "the request is larger than the provider's rate limit permits at any time; shorten it, or lower its max_tokens",
)
_RATE = _Rule("rate_limited", "the provider's rate limit was hit", retryable=True)
_SERVER = _Rule("server_error", "the provider failed", retryable=True)
_BUSY = _Rule("server_error", "the provider is overloaded", retryable=True)
_BAD_REQUEST = _Rule("bad_request", "the provider refused the request")
_NO_MODEL = _Rule("not_found", "the provider does not know this model or address; check base_url and upstream")
_FILTERED = _Rule("content_filter", "the provider's content filter refused the prompt")
_STREAM_ONLY = _Rule("bad_request", "the model answers only as a stream; give it `stream_only = true` in the catalogue")
_BAD_OUTPUT = _Rule("bad_response", "the model wrote nothing that the provider could pass on", retryable=True)
_NO_DOWNLOAD = _Rule("bad_request", "the provider could not download a file that the prompt links to", retryable=True)

_BY_STATUS = {
    401: _AUTH,
    402: _QUOTA,
    403: _PERMISSION,
    404: _NO_MODEL,
    408: _Rule("timeout", "the provider gave up waiting for the request or for the model", retryable=True),
    409: _Rule("server_error", "the provider reports a conflict with another request", retryable=True),
    413: _TOO_LARGE,
    424: _Rule("server_error", "something that the provider depends on failed", retryable=True),
    425: _BUSY,
    429: _RATE,
    498: _BUSY,  # Groq's flex tier is out of capacity
    501: _Rule("server_error", "the provider does not implement this request"),
    503: _BUSY,
    529: _BUSY,
}


def _named(rule: _Rule, names: str) -> dict[str, _Rule]:
    return dict.fromkeys(names.split(), rule)


# In lower case, without `_` and `-`: providers spell one name in several ways.
_BY_NAME = {
    **_named(_AUTH, "invalidapikey apikeyinvalid authenticationerror invalidauthenticationerror unauthenticated"),
    **_named(_QUOTA, "insufficientquota insufficientuserquota insufficientbalance insufficientbalanceerror"),
    **_named(_QUOTA, "billinghardlimitreached billingnotactive billingerror budgetexceeded exceededcurrentquotaerror"),
    **_named(_QUOTA, "arrearage accountoverdueerror setlimitexceeded preconsumetokenquotafailed 1113 30011"),
    **_named(_TOO_LARGE, "contextlengthexceeded stringabovemaxlength arrayabovemaxlength requesttoolarge"),
    **_named(_TOO_LARGE, "exceedcontextsizeerror modelmaxprompttokensexceeded tokenslimitreached maxtokensperrequest"),
    **_named(_NO_MODEL, "modelnotfound deploymentnotfound notfounderror invalidmodel modelnotexist"),
    **_named(_RATE, "ratelimitexceeded ratelimiterror ratelimitreachederror ratelimitreached toomanyrequests"),
    **_named(_RATE, "resourceexhausted concurrentsessionlimitexceeded openrouterinflightbudget"),
    **_named(_BUSY, "overloadederror engineoverloadederror serveroverloaded unavailable capacityexceeded"),
    **_named(_FILTERED, "contentfilter contentpolicyviolation datainspectionfailed responsibleaipolicyviolation"),
    **_named(_FILTERED, "moderationblocked sensitivecontent"),
    # Groq's 400 for what its model wrote, which may be well at the next try.
    **_named(_BAD_OUTPUT, "jsonvalidatefailed toolusefailed"),
}
_THROTTLING = re.compile(r"throttling|.*ratelimit", re.IGNORECASE)

_LARGER_THAN_LIMIT = re.compile(r"limit:? ?([0-9,]{1,15})\b.{0,40}?\brequested:? ?([0-9,]{1,15})", re.DOTALL)

# In the order in which they are looked for, in lower case.
_BY_SENTENCE: tuple[tuple[_Rule, tuple[str, ...]], ...] = (
    (
        _TOO_LARGE,
        (
            r"maximum (context|prompt|sequence) length",
            r"context window",
            r"(prompt|input) is too long",
            r"input length exceeds",
            r"input token count .{0,40}exceeds",
            r"available context size",
            r"(larger|bigger) than the max context size",
            r"input (prompt )?is too (large to process|big compared to kv size)",
            r"range of input length",
            r"exceeds? (the |this )?(model'?s? )?(maximum )?context",
            r"max(imum)? [0-9]+ tokens per request",
            r"must have less than [0-9]+ tokens",
            r"too many tokens",
        ),
    ),
    (_ABOVE_LIMIT, (r"reduce your message size", r"tokens must be reduced", r"request too large")),
    (
        _QUOTA,
        (
            r"credit balance is too low",
            r"insufficient (account )?(balance|credit|fund)",
            r"balance is (insufficient|not enough)",
            r"余额不足",
            r"requires more credits",
            r"account (is |has been )?suspended",
            r"budget (has been )?exceeded|(crossed|exceeded) budget",
            r"used all available credits",
            r"monthly (included credits|spending limit)",
            r"key limit exceeded",
            r"reached your specified api usage limits",
            r"in arrears|overdue",
            r"\blimit: 0\b",
            r"no credits? (left|remaining)|credits? (are )?(exhausted|depleted)",
        ),
    ),
    (_AUTH, (r"api key (not valid|expired|is invalid)", r"(incorrect|invalid) api[- ]key", r"invalid x-api-key")),
    (_STREAM_ONLY, (r"only supports? stream",)),
    (_NO_DOWNLOAD, (r"time(d )?out while (downloading|fetching)", r"(downloading|fetching) .{0,300}timed out")),
    (_FILTERED, (r"content management policy", r"requires moderation", r"inappropriate content", r"was flagged")),
    (_NO_MODEL, (r"model not exist", r"is not a valid model", r"model .{0,100}(does not exist|not found)")),
    (_BUSY, (r"(model|server|service|engine) (.{0,80} )?is (currently |temporarily )?(overloaded|loading|busy)",)),
    (_RATE, (r"rate limit(s| was| is)? (exceeded|reached|hit)", r"too many requests", r"exceeded .{0,20}rate limit")),
)
_SENTENCES = tuple((rule, re.compile("|".join(patterns), re.DOTALL)) for rule, patterns in _BY_SENTENCE)

_MAY_MEAN_ANYTHING = frozenset({200, 400, 403, 404, 413, 422, 424, 429, 500})
"""Statuses behind which the sentence is looked at."""

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,200}", re.ASCII)


def refusal(raw: RawResponse, *, now: float) -> Failure:
    """The failure that a status outside 200-299 means. `now` in epoch seconds."""
    if 300 <= raw.status < 400:
        return with_evidence(_redirect(raw), raw)
    error = error_body(raw.body)
    wait_s = retry_after_s(raw.headers, now, error)
    rule = _rule(raw.status, error)
    if rule is _PERMISSION and wait_s is not None:
        rule = _RATE  # a quota with a time
    failure = _failure(rule, raw.status, error, wait_s)
    failure.is_refusal = rule is not _BAD_OUTPUT and (
        rule.code == "too_large" or (400 <= raw.status < 500 and raw.status != 408)
    )
    return with_evidence(failure, raw)


def refusal_within(parsed: Any, raw: RawResponse, *, now: float) -> Failure:
    """The failure that an error within a 200 means."""
    error = error_of(parsed)
    status = error.status or raw.status
    rule = _rule(status, error)
    if rule is _BAD_REQUEST and error.status is None:
        rule = _Rule("bad_response", "the provider said 200 and sent an error in the body", retryable=True)
        # Of a response that failed, whose error has a name alone.
        rule = _SERVER if "server_error" in error.names else rule
    failure = _failure(rule, raw.status, error, retry_after_s(raw.headers, now, error))
    failure.is_refusal = error.status is not None and 400 <= error.status < 500
    return failure


def with_evidence(failure: Failure, raw: RawResponse) -> Failure:
    """Add what the response shows: status, request id and the cut body."""
    failure.http_status = raw.status
    failure.provider_body = raw.body[:PROVIDER_BODY_BYTES].decode("utf-8", "replace")
    failure.request_id = _request_id(raw)
    return failure


def _failure(rule: _Rule, status: int, error: ErrorBody, wait_s: float | None) -> Failure:
    names = list(dict.fromkeys([str(status), *error.names]))[:_MOST_NAMES]
    return Failure(rule.code, f"{rule.text} ({', '.join(names)})", retryable=rule.retryable, retry_after_s=wait_s)


def _rule(status: int, error: ErrorBody) -> _Rule:
    by_name = _by_names(error.names)
    if status in _MAY_MEAN_ANYTHING and (said := _by_sentence(error.sentence, by_name)) is not None:
        return said
    if by_name is not None:
        return by_name
    return _BY_STATUS.get(status, _SERVER if status >= 500 else _BAD_REQUEST)


def _by_names(names: Iterable[str]) -> _Rule | None:
    found = [rule for name in names if (rule := _by_name(name)) is not None]
    # A throttle of a moment that calls itself a quota as well.
    return _RATE if _RATE in found and _QUOTA in found else next(iter(found), None)


def _by_name(name: str) -> _Rule | None:
    rule = _BY_NAME.get(name.lower().replace("_", "").replace("-", ""))
    return _RATE if rule is None and _THROTTLING.match(name) else rule


def _by_sentence(sentence: str, by_name: _Rule | None) -> _Rule | None:
    """What the sentence says beyond the names, or against them."""
    sentence = sentence.lower()
    if (above := _LARGER_THAN_LIMIT.search(sentence)) is not None:
        limit, requested = (int(number.replace(",", "") or 0) for number in above.groups())
        if requested > limit:
            return _ABOVE_LIMIT
    said = next((rule for rule, pattern in _SENTENCES if pattern.search(sentence)), None)
    if by_name is None or by_name is _RATE:
        return said
    # Another name is believed: only a rate limit is known to stand for something else.
    return None


def _request_id(raw: RawResponse) -> str | None:
    value = raw.headers.get("x-request-id") or raw.headers.get("request-id") or ""
    return value if _REQUEST_ID.fullmatch(value) else None


def _redirect(raw: RawResponse) -> Failure:
    return Failure(
        "bad_response",
        f"the provider redirects ({raw.status}) to {_origin(raw.headers.get('location', ''))}; redirects are not "
        "followed, because the key would go along: put the final address into the provider's base_url",
    )


def _origin(location: str) -> str:
    try:
        url = urlsplit(location)
        host = url.hostname
    except ValueError:
        return "an unreadable address"
    return f"{url.scheme}://{host}" if host and url.scheme.isalpha() else "another path"
