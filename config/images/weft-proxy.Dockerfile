# weft-proxy: the sidecar, and the init container that sets up its redirect. The same content as the archive of `make images`, for people with a container engine:
#   make images && docker build -f config/images/weft-proxy.Dockerfile -t weft-proxy:dev .
FROM scratch
COPY config/images/passwd config/images/group /etc/
COPY --chmod=755 target/images/weft-proxy /usr/local/bin/weft-proxy
ENV PATH=/usr/local/bin:/usr/bin:/bin
WORKDIR /
USER 1337:1337
LABEL org.opencontainers.image.title=weft-proxy
ENTRYPOINT ["/usr/local/bin/weft-proxy"]
