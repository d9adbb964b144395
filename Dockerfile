# A small image that contains only the compiled program.
#   docker build --tag marketing-data-service .
# The target "sample" fills a source with sample data for compose.yaml.
ARG DENO_VERSION=2.9.6

FROM denoland/deno:debian-${DENO_VERSION} AS build
ENV DENO_DIR=/deno-dir
WORKDIR /app
COPY deno.json deno.lock cli.ts main.ts ./
COPY packaging packaging
COPY src src
# Deno's cache survives the layer. So a change of the sources downloads neither
# the libraries nor denort again.
RUN --mount=type=cache,target=/deno-dir,sharing=locked \
    deno check cli.ts main.ts && deno task compile && mkdir state

FROM denoland/deno:debian-${DENO_VERSION} AS sample
WORKDIR /app
COPY deno.json deno.lock ./
COPY src src
COPY demo/fill.ts demo/sample_data.ts demo/
RUN deno cache --frozen demo/fill.ts
USER deno
CMD ["run", "--no-prompt", "--cached-only", "--allow-net", "--allow-read", "--allow-env", "demo/fill.ts"]

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /app/dist/marketing-data-service /usr/local/bin/marketing-data-service
# The default EVENT_FILE and EVENT_SPOOL_FILE are here: mount a volume.
COPY --from=build --chown=nonroot:nonroot /app/state /var/lib/marketing-data-service
WORKDIR /var/lib/marketing-data-service
ENV HOST=0.0.0.0 PORT=8000
EXPOSE 8000
# Checks the status, not only the port.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["/usr/local/bin/marketing-data-service", "health", "--service"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/marketing-data-service"]
CMD ["serve"]
