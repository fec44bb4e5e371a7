//! A configuration, asked for everything that slim wants to know of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slim::model::ImageConfig;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = serde_json::from_slice(data) else { return };
    let config = ImageConfig(value);
    let _ = (config.entrypoint(), config.cmd(), config.env(), config.user().map(str::len));
    let _ = (config.workdir().map(str::len), config.stop_signal().map(str::len), config.shell());
    let _ = (config.volumes(), config.labels(), config.exposed_ports(), config.healthcheck());
    let _ = (config.diff_ids(), config.platform());
});
