# A key-value store that drops root by itself.
PACKAGES=redis-server
CONFIG=(--config.cmd redis-server --config.cmd --bind --config.cmd 0.0.0.0 --config.cmd --protected-mode --config.cmd no
    --config.exposedports 6379/tcp --config.user redis --config.workingdir /data --config.volume /data)
prepare() {
    mkdir -p "$1/data"
    chroot "$1" chown redis:redis /data
}
