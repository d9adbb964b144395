# A small image that contains only the compiled program.
#   docker build --tag marketing-data-service:0.1.0 .
# The target "prebuilt" takes dist/marketing-data-service as it is. The target
# "sample" fills a source with sample data for compose.yaml. docs/operations.md
# shows how to build with a mirror, with a private authority, and without network.
ARG BUILD_IMAGE=denoland/deno:debian-2.9.6
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian13:nonroot

# An empty folder, because the runtime image has no program that makes one.
FROM scratch AS state
WORKDIR /state

# --build-context denort=FOLDER replaces this stage by a folder that has denort.
FROM scratch AS denort

FROM ${BUILD_IMAGE} AS build
ARG NPM_CONFIG_REGISTRY
ENV DENO_DIR=/deno-dir
WORKDIR /app
COPY deno.json deno.lock cli.ts main.ts ./
COPY packaging packaging
COPY src src
# Deno's cache survives the layer. So a change of the sources downloads neither
# the libraries nor denort again.
RUN --mount=type=cache,target=/deno-dir,sharing=locked \
    --mount=type=bind,from=denort,target=/denort \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    if [ -e /denort/denort ]; then export DENORT_BIN=/denort/denort; fi && \
    if [ -e /run/secrets/ca ]; then export DENO_CERT=/run/secrets/ca; fi && \
    deno task compile

FROM ${BUILD_IMAGE} AS sample
ARG NPM_CONFIG_REGISTRY
ENV DENO_DIR=/deno-dir
WORKDIR /app
COPY deno.json deno.lock ./
COPY src src
COPY demo/fill.ts demo/sample_data.ts demo/
RUN --mount=type=secret,id=ca,target=/run/secrets/ca \
    if [ -e /run/secrets/ca ]; then export DENO_CERT=/run/secrets/ca; fi && \
    deno cache --frozen demo/fill.ts
USER deno
CMD ["run", "--no-prompt", "--cached-only", "--allow-net", "--allow-read", "--allow-env", "demo/fill.ts"]

FROM ${RUNTIME_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="marketing-data-service" \
      org.opencontainers.image.description="Keeps PostgreSQL warehouse tables equal to source tables" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT"
USER 65532:65532
# The default EVENT_FILE and EVENT_SPOOL_FILE are here: mount a volume.
COPY --from=state --chown=65532:65532 /state /var/lib/marketing-data-service
WORKDIR /var/lib/marketing-data-service
ENV HOST=0.0.0.0 PORT=8000
EXPOSE 8000
# Checks the process only: a new container does not repair a database.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["/usr/local/bin/marketing-data-service", "health", "--live"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/marketing-data-service"]
CMD ["serve"]

FROM runtime AS prebuilt
COPY --chmod=755 dist/marketing-data-service /usr/local/bin/marketing-data-service

FROM runtime
COPY --from=build /app/dist/marketing-data-service /usr/local/bin/marketing-data-service
