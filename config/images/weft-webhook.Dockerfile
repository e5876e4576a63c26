# weft-webhook: injection and validation. The same content as the archive of `make images`, for people with a container engine:
#   make images && docker build -f config/images/weft-webhook.Dockerfile -t weft-webhook:dev .
FROM scratch
COPY config/images/passwd config/images/group /etc/
COPY --chmod=755 target/images/weft-webhook /usr/local/bin/weft-webhook
ENV PATH=/usr/local/bin:/usr/bin:/bin
WORKDIR /
USER 65532:65532
LABEL org.opencontainers.image.title=weft-webhook
ENTRYPOINT ["/usr/local/bin/weft-webhook"]
