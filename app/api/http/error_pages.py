"""For each kind of error, what it means and what a client does about it: the text of its page at /errors/{code}."""

ADVICE = {
    "invalid-request": "A parameter, a header or a member of the body is unknown, missing, or not of the allowed kind. "
    "The list `errors` names each by pointer. Mend them and send the request again.",
    "invalid-image": "The bytes are no PNG, JPEG or WebP, are damaged, or do not suit the model: too large, "
    "animated, or of another size. Open it in an image editor and save it afresh as PNG.",
    "invalid-dataset": "The archive cannot be read, has no usable image, or lacks what the family needs. The error of "
    "the job lists the refused members with reasons; see the layouts under POST /v1/datasets.",
    "invalid-config": "A setting of the family is unknown, of the wrong kind or out of range, or two do not agree. "
    "GET /v1/families has the schema of each family's config.",
    "diverged": "The loss stopped being a finite number. Train again with a lower learning rate.",
    "idempotency-mismatch": "An Idempotency-Key stands for one request. Make a fresh one for each new request.",
    "unauthorized": "Send an API key as `Authorization: Bearer an_...`. It may have expired or been revoked.",
    "forbidden": "The key is valid but lacks the scope that the problem names, or the request came from another site's "
    "page or for a Host that is not served.",
    "not-found": "The address is misspelt, or the thing was deleted, or belongs to another tenant. The remedy has the "
    "nearest names.",
    "method-not-allowed": "The header Allow says which methods the address takes.",
    "not-acceptable": "The header Accept excludes every form the answer can take. The remedy lists them.",
    "conflict": "The request makes sense but not now: a name is taken, a job has ended already. The detail says what.",
    "unsupported-operation": "The model's family cannot do this. The problem lists what it can do; GET /v1/families "
    "says which families can.",
    "model-not-ready": "The model is still being trained. Follow the job that the problem names, and come back.",
    "too-large": "A body, image or archive is larger than this service takes. Send less, or ask its administrator.",
    "unsupported-media": "The Content-Type is not read at this address, or the body is compressed.",
    "quota-exceeded": "Your tenant has as many jobs, or stores as many bytes, as it may. Wait, or delete something.",
    "rate-limited": "Too many requests in too short a time. Wait as long as Retry-After says.",
    "overloaded": "More calls wait than can be answered in time. Come back after Retry-After seconds.",
    "unavailable": "The database, the broker or the blob store did not answer. Nothing was half done; try again.",
    "worker-lost": "No inference worker is there, or it stopped while it computed your answer. Try again.",
    "oracle-silent": "The model elsewhere that was to be asked did not answer, or not as its protocol says. Ask who "
    "runs it; what was found before is kept in the job.",
    "out-of-memory": "The worker had too little memory. Ask for fewer or smaller images, or a smaller model.",
    "deadline-exceeded": "The answer took too long. Ask for less, or make it a job with `Prefer: respond-async`.",
    "storage-full": "There is no space left where data are kept. Delete datasets or models, or ask the administrator.",
    "attempts-exhausted": "The job was tried as often as it may fail; each time its worker disappeared, which is how a "
    "lack of memory looks. Resume it, or make it smaller.",
    "internal": "An error nobody foresaw. The service's log has the details under the request id of the problem.",
}
