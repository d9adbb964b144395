# The service in a small image: the compiled binary and nothing else.
ARG DENO_VERSION=2.9.6

FROM denoland/deno:debian-${DENO_VERSION} AS build
WORKDIR /app
# A layer of its own, so that a change of the sources downloads nothing.
COPY deno.json deno.lock ./
COPY src/std.d.ts src/std.d.ts
COPY cli.ts main.ts ./
COPY src src
RUN deno check cli.ts main.ts && deno task compile

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /app/dist/marketing-data-service /usr/local/bin/marketing-data-service
ENV HOST=0.0.0.0 PORT=8000
EXPOSE 8000
# Reads the status, not only whether something listens.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
  CMD ["/usr/local/bin/marketing-data-service", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/marketing-data-service"]
CMD ["serve"]
