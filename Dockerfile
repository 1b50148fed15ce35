# syntax=docker/dockerfile:1
# Two images, one recipe:
#
#   docker build --target sidecar      -t sidestep-sidecar:0.1.0 .
#   docker build --target controlplane -t sidestep-controlplane:0.1.0 .
#
# PYTHON_IMAGE is pinned by its tag here; pin it by digest in your pipeline: --build-arg PYTHON_IMAGE=python@sha256:...
# scripts/build_tree.py makes what goes into /opt/sidestep; it needs no container engine, and tests/image runs what it makes.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY constraints.txt ./
RUN python -m pip install --quiet --constraint constraints.txt cyclonedx-bom
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY clients/python clients/python
COPY engine engine
COPY sidecar sidecar
COPY controlplane controlplane
COPY scripts/build_tree.py scripts/build_tree.py

FROM build AS build-sidecar
RUN python scripts/build_tree.py sidecar /opt/sidestep

FROM build AS build-controlplane
RUN python scripts/build_tree.py controlplane /opt/sidestep

# The interpreter and nothing to build or fetch with. The user is a number, so that `runAsNonRoot` can be checked without a look
# into the image, and has no home. The root may be read-only: only /var/lib/sidestep is written to.
FROM ${PYTHON_IMAGE} AS runtime
RUN rm -rf /usr/local/lib/python3.*/site-packages/* /usr/local/lib/python3.*/ensurepip \
      /usr/local/bin/pip* /usr/local/bin/wheel /usr/local/bin/idle* /usr/local/bin/pydoc* /usr/local/bin/2to3* \
      /usr/local/bin/*-config /root/.cache \
    && install -d -o 65532 -g 65532 -m 0700 /var/lib/sidestep
ENV PATH=/opt/sidestep/bin:/usr/local/bin:/usr/bin:/bin HOME=/var/lib/sidestep PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /var/lib/sidestep
USER 65532:65532
STOPSIGNAL SIGTERM
LABEL org.opencontainers.image.vendor="Sidestep" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime AS sidecar
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="sidestep-sidecar" \
      org.opencontainers.image.description="Decides in the pod whether an action may skip step-up authentication" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build-sidecar /opt/sidestep /opt/sidestep
ENV SIDESTEP_DATA_DIR=/var/lib/sidestep SIDESTEP_HTTP_LISTEN=127.0.0.1:9192
EXPOSE 9191 9192
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["sh", "-c", "exec sidestep-healthcheck \"$SIDESTEP_HTTP_LISTEN\" /healthz"]
ENTRYPOINT ["sidestep-sidecar"]

FROM runtime AS controlplane
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="sidestep-controlplane" \
      org.opencontainers.image.description="Keeps Sidestep's records and the caches of all its sidecars current" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build-controlplane /opt/sidestep /opt/sidestep
ENV SIDESTEP_CP_DATABASE_URL=sqlite+aiosqlite:////var/lib/sidestep/sidestep.db SIDESTEP_CP_HTTP_LISTEN=127.0.0.1:9189
EXPOSE 9190 9189
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["sh", "-c", "exec sidestep-healthcheck \"$SIDESTEP_CP_HTTP_LISTEN\" /healthz"]
ENTRYPOINT ["sidestep-controlplane"]
