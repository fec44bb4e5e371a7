//! Names of slim images.

use super::PipelineError;
use crate::oci::Image;
use crate::wire::{is_component, is_tag};

/// The names that `templates` mean for an image, each checked.
///
/// # Errors
/// A usage error for a word in braces that stands for nothing, or a name that no engine loads.
pub(super) fn fill(templates: &[String], image: &Image) -> Result<Vec<String>, PipelineError> {
    if templates.is_empty() {
        return Ok(vec![slim_tag(image.name.as_deref())]);
    }
    let (repository, tag) = split(image.name.as_deref().unwrap_or("slim"));
    let mut platform = image.platform.split('/');
    let (os, arch) = (platform.next().unwrap_or(""), platform.next().unwrap_or(""));
    let config = &image.config_digest.hex()[..12];
    let words =
        [("repository", repository), ("tag", tag), ("os", os), ("arch", arch), ("config", config)];
    let mut names: Vec<String> = Vec::new();
    for template in templates {
        let mut name = template.clone();
        for (word, value) in words {
            name = name.replace(&format!("{{{word}}}"), value);
        }
        check(&name)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Checks a name or template as far as that goes without an image.
pub(super) fn check_template(template: &str) -> Result<(), PipelineError> {
    let mut name = template.to_owned();
    for word in ["repository", "tag", "os", "arch", "config"] {
        name = name.replace(&format!("{{{word}}}"), "x");
    }
    if name.contains(['{', '}']) {
        return Err(PipelineError::Usage(format!(
            "--tag {template:?}: in braces it knows {{repository}}, {{tag}}, {{os}}, {{arch}} and \
             {{config}} only"
        )));
    }
    check(&name)
}

/// `repo:tag` becomes `repo-slim:tag`; an image without a name `slim:latest`.
pub(super) fn slim_tag(name: Option<&str>) -> String {
    let Some(name) = name else { return "slim:latest".to_owned() };
    let (repository, tag) = split(name);
    format!("{repository}-slim:{tag}")
}

/// Repository and tag, without a digest.
fn split(name: &str) -> (&str, &str) {
    let name = name.split('@').next().unwrap_or(name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "latest"),
    }
}

/// Refuses a `--tag` that no engine would load.
///
/// The grammar is that of the distribution project's references: an optional registry host with a
/// port, lower-case path components, a tag of at most 128 characters. A digest cannot be chosen.
pub(super) fn check(tag: &str) -> Result<(), PipelineError> {
    let bad = |why: &str| {
        Err(PipelineError::Usage(format!(
            "--tag {tag:?}: {why}; give NAME[:TAG], as in shop/web:slim"
        )))
    };
    if tag.contains('@') {
        return bad("a digest comes from the content and cannot be chosen");
    }
    let (name, label) = match tag.rsplit_once(':') {
        Some((name, label)) if !label.contains('/') => (name, label),
        _ => (tag, "latest"),
    };
    if !is_tag(label) {
        return bad(
            "a tag is letters, digits, _, . and -, at most 128, and begins with none of . -",
        );
    }
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => ("", name),
    };
    let host_fits = host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':'));
    if name.len() > 255 || !host_fits || !path.split('/').all(is_component) {
        return bad("a name is lower-case letters and digits, parted by . _ __ or -");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check, slim_tag};

    #[test]
    fn the_default_tag_follows_the_original() {
        for (name, want) in [
            (None, "slim:latest"),
            (Some("nginx"), "nginx-slim:latest"),
            (Some("nginx:1.22"), "nginx-slim:1.22"),
            (Some("host:5000/a/b"), "host:5000/a/b-slim:latest"),
            (Some("host:5000/a/b:v1"), "host:5000/a/b-slim:v1"),
        ] {
            assert_eq!(slim_tag(name), want, "{name:?}");
        }
    }

    #[test]
    fn a_tag_that_no_engine_loads_is_refused() {
        for good in ["a", "shop/web:slim", "host:5000/a/b", "localhost/a__b-c--d.e:V1.2-x", "a:_1"]
        {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "Bad",
            "a b",
            "a:",
            "a:-x",
            "a:b c",
            "a//b",
            "/a",
            "a/",
            "a._b",
            "a___b",
            "a@sha256:0",
            "a:b:c",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
