"""For each kind of error, what it means and what to do: the text of its page at /errors/{code}."""

ADVICE = {
    "invalid-request": "A parameter, a header or a field of the body is unknown, missing or invalid. The list `errors` "
    "names each by pointer. Fix them and retry.",
    "invalid-image": "The file is not a PNG, JPEG or WebP image, is damaged, or does not suit the model: too large, "
    "animated, or of another size. Re-save it as PNG in an image editor.",
    "invalid-dataset": "The archive cannot be read, has no usable image, or lacks what the family needs. The error of "
    "the job lists the refused files with reasons; see the layouts under POST /v1/datasets.",
    "invalid-config": "A setting of the family is unknown, of the wrong type or out of range, or two settings "
    "contradict each other. GET /v1/families has the schema of the config of each family.",
    "diverged": "The loss became infinite or not a number. Train again with a lower learning rate.",
    "idempotency-mismatch": "The Idempotency-Key was used before for a request with other content. Use a new key for "
    "each new request.",
    "unauthorized": "Send an API key as `Authorization: Bearer an_...`. A key may have expired or been revoked.",
    "forbidden": "The key is valid but lacks the scope that the problem names.",
    "cross-site": "The request came from a page of another site, or its header Host names a host that is not allowed. "
    "The administrator allows origins with ANAMORPH_ALLOWED_ORIGINS and hosts with ANAMORPH_ALLOWED_HOSTS.",
    "not-found": "The path or a name is misspelt, or the resource was deleted or belongs to another tenant. The remedy "
    "has the nearest names.",
    "method-not-allowed": "The path does not support this method. The header Allow lists those that it supports.",
    "not-acceptable": "The header Accept excludes every media type that the answer can have. The remedy lists them.",
    "conflict": "The request is valid, but the current state does not allow it: a name is taken, or a job has ended. "
    "The detail says which.",
    "unsupported-operation": "The family of the model does not support the operation. The problem lists the supported "
    "ones; GET /v1/families has those of each family.",
    "model-not-ready": "The model is still being trained. Retry when the job that the problem names has succeeded.",
    "request-timeout": "The headers or the body of the request came too slowly. Retry over a better connection, or "
    "send less.",
    "headers-too-large": "The address and the headers of the request are too large. Send what is long in the body.",
    "too-large": "A body, an image or an archive is larger than the service allows. Send less, or ask its "
    "administrator to raise the limit.",
    "unsupported-media": "The path does not read this Content-Type, or the body is compressed.",
    "quota-exceeded": "The key or its tenant has used up its seconds of compute, its jobs or its stored bytes. Wait, "
    "or delete something. GET /v1/me has all limits and what is used of them.",
    "rate-limited": "Too many requests in a short time. Retry after the seconds in the header Retry-After.",
    "overloaded": "More calls are waiting than can be answered in time. Retry after the seconds in the header "
    "Retry-After.",
    "unavailable": "The database, the broker or the blob store did not answer. Nothing was changed; retry.",
    "worker-lost": "No inference worker is running, or it stopped while it computed the answer. Retry.",
    "oracle-silent": "The oracle did not answer, or not in the agreed format. Ask its operator; the results so far are "
    "in the job.",
    "out-of-memory": "The worker ran out of memory. Send fewer or smaller images, or use a smaller model.",
    "deadline-exceeded": "The answer took too long. Ask for less, or make the call a job with `Prefer: respond-async`.",
    "too-long": "The request is predicted to take longer than a client may wait; `price` has the passes and seconds. "
    "Ask for less, or make the call a job with `Prefer: respond-async`.",
    "client-gone": "The client closed the connection before the answer, so the computation was stopped.",
    "storage-full": "The disk or the object store is full. Delete datasets or models, or ask the administrator.",
    "storage-damaged": "Stored files of a model, a dataset or a job are missing or are not those that were written. "
    "`anamorph doctor --blobs` lists them and `--heal` repairs what it can; the remedy says what else helps.",
    "attempts-exhausted": "The worker disappeared in each attempt, which often means too little memory. Resume the "
    "job, or make it smaller.",
    "internal": "An unexpected error. The log of the service has the details under the request id of the problem.",
}
