"""What every route shares: the request's transaction, its credential, parsing, errors and the OpenAPI document."""
