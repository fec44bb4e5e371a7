//! An index, and the choice of a platform.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slim::oci::manifest::{Index, is_index, is_manifest};

fuzz_target!(|data: &[u8]| {
    let Ok(index) = serde_json::from_slice::<Index>(data) else { return };
    for descriptor in &index.manifests {
        let _ = (is_index(&descriptor.media_type), is_manifest(&descriptor.media_type));
        let _ = descriptor.digest.parse::<slim::model::Digest>();
        if let Some(platform) = &descriptor.platform {
            assert!(platform.matches(&platform.to_string()) || platform.os.contains('/')
                || platform.architecture.contains('/') || platform.architecture == "arm64");
            let _ = platform.matches("linux/arm64/v8");
        }
    }
});
