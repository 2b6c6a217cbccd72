# One image for every process of the service; docker-compose.yml and the Procfile say which one runs.
#
# The base is pinned by version tag. Where you build, pin it by digest too (python:3.13-slim-trixie@sha256:...),
# in both stages alike: a tag can be moved, a digest cannot.

FROM python:3.13-slim-trixie AS build

COPY requirements.txt /build/requirements.txt
# Wheels only: every pin has one for x86-64 and ARM64, so no stage needs a compiler. The environment gets no
# pip of its own, so nothing can be installed where the image runs.
RUN python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --require-hashes --no-compile --no-cache-dir \
        --only-binary :all: --requirement /build/requirements.txt

FROM python:3.13-slim-trixie

ARG VERSION=1.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="BotBat Integrations" \
      org.opencontainers.image.description="API keys, signed outgoing webhooks and their delivery log" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim-trixie"

# Bytecode goes to /tmp, the one place that is writable when the root file system is read-only.
ENV PATH="/venv/bin:${PATH}" \
    PYTHONUNBUFFERED=1 \
    PYTHONPYCACHEPREFIX=/tmp/pycache \
    BOTBAT_ENV=production \
    BOTBAT_DATA_DIR=/tmp/botbat \
    BOTBAT_HOST=0.0.0.0 \
    PORT=8000

RUN groupadd --gid 10001 botbat \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin botbat

COPY --from=build /venv /venv
WORKDIR /app
COPY botbat Procfile ./
COPY config ./config
COPY worker ./worker
COPY app ./app

# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8000

# For the web process; whoever runs another one from this image replaces it.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/healthz\", timeout=4)"]

# Not ./botbat, which would look for an environment to install into.
CMD ["python", "-m", "app.cli", "web"]
