//! A manifest, and docker-archive's list of images.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slim::oci::manifest::{DockerItem, Manifest};

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(data) {
        let text = serde_json::to_vec(&manifest).expect("plain data");
        serde_json::from_slice::<Manifest>(&text).expect("what was written is read");
        for layer in &manifest.layers {
            let _ = layer.digest.parse::<slim::model::Digest>();
        }
    }
    let _ = serde_json::from_slice::<Vec<DockerItem>>(data);
});
