# weft-app: the sample application. The same content as the archive of `make images`, for people with a container engine:
#   make images && docker build -f config/images/weft-app.Dockerfile -t weft-app:dev .
FROM scratch
COPY config/images/passwd config/images/group /etc/
COPY --chmod=755 target/images/weft-app /usr/local/bin/weft-app
ENV PATH=/usr/local/bin:/usr/bin:/bin
WORKDIR /
USER 65532:65532
LABEL org.opencontainers.image.title=weft-app
ENTRYPOINT ["/usr/local/bin/weft-app"]
