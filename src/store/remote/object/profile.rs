//! The profiles of the AWS command line: `~/.aws/credentials` and `~/.aws/config`
//! (docs.aws.amazon.com, "Shared config and credentials files").

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::uri::Shown;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Settings by name.
type Section = BTreeMap<String, String>;

/// What a profile says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Profile {
    /// Of either file; what the credentials file says goes first.
    settings: Section,
    /// `endpoint_url` of S3 in the `services` section that it names.
    s3_endpoint: Option<String>,
}

impl Profile {
    /// The one that the environment names, or `default`; empty if there is none and none was named.
    ///
    /// # Errors
    /// `NotFound` if one was named that is in neither file; `Io` if a file cannot be read.
    pub fn load(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let home = variable("HOME").map(PathBuf::from).unwrap_or_default();
        let file = |name: &str, usual: &str| {
            variable(name).map_or_else(|| home.join(".aws").join(usual), PathBuf::from)
        };
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let config = file("AWS_CONFIG_FILE", "config");
        let named = variable("AWS_PROFILE").or_else(|| variable("AWS_DEFAULT_PROFILE"));
        let name = named.as_deref().unwrap_or("default");
        match Self::of(name, &text(&credentials)?, &text(&config)?) {
            Some(profile) => Ok(profile),
            None if named.is_none() => Ok(Self::default()),
            None => {
                let (one, other) = (credentials.shown(), config.shown());
                let what =
                    format!("no AWS profile \"{}\" in {one} or {other}", name.escape_debug());
                Err(Error::new(ErrorKind::NotFound, what).hint("check AWS_PROFILE"))
            }
        }
    }

    fn of(name: &str, credentials: &str, config: &str) -> Option<Self> {
        let (mut credentials, mut config) = (sections(credentials), sections(config));
        let of_config = config.remove(&format!("profile {name}"));
        let of_config = of_config.or_else(|| config.remove(name));
        let of_credentials = credentials.remove(name);
        if of_config.is_none() && of_credentials.is_none() {
            return None;
        }
        let mut settings = of_config.unwrap_or_default();
        settings.extend(of_credentials.unwrap_or_default());
        let services = settings.get("services").and_then(|name| {
            let services = config.get(&format!("services {name}"))?;
            services.get("s3.endpoint_url").cloned()
        });
        Some(Self { settings, s3_endpoint: services })
    }

    /// A setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Where S3 is, if it is not where it usually is.
    pub fn s3_endpoint(&self) -> Option<&str> {
        self.s3_endpoint.as_deref().or_else(|| self.get("endpoint_url"))
    }
}

/// The text of a file; empty if there is none.
fn text(file: &Path) -> Result<String> {
    match std::fs::read_to_string(file) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(String::new())
        }
        other => other.map_err(|e| Error::os("read", file.shown(), e)),
    }
}

/// The sections of a file. Indented lines below `NAME =` are settings of that one: `NAME.SETTING`.
fn sections(text: &str) -> BTreeMap<String, Section> {
    let mut sections = BTreeMap::new();
    let mut section: Option<&mut Section> = None;
    let mut parent = String::new();
    for line in text.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            section = Some(sections.entry(name).or_insert_with(Section::new));
            continue;
        }
        let (Some(section), Some((name, value))) = (&mut section, line.split_once('=')) else {
            continue;
        };
        let name = name.trim().to_ascii_lowercase();
        // A comment begins behind white space.
        let value = value.split(" #").next().unwrap_or_default();
        let value = value.split(" ;").next().unwrap_or_default().trim().to_owned();
        match is_nested && !parent.is_empty() {
            true => {
                section.insert(format!("{parent}.{name}"), value);
            }
            false => {
                parent = if value.is_empty() { name.clone() } else { String::new() };
                section.insert(name, value);
            }
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "\
[default]
region = eu-central-1
[profile  backup] ; of the nightly jobs
region=eu-west-1   # there
services = local
s3 =
  addressing_style = path
[services local]
s3 =
    endpoint_url = http://127.0.0.1:9000
";
    const CREDENTIALS: &str = "\
# comment
[default]
aws_access_key_id = A
aws_secret_access_key = a=b
[backup]
AWS_ACCESS_KEY_ID = B
";

    #[test]
    fn a_profile_is_of_both_files() {
        let of = |name: &str| Profile::of(name, CREDENTIALS, CONFIG);
        let default = of("default").unwrap();
        assert_eq!(default.get("aws_secret_access_key"), Some("a=b"));
        assert_eq!(default.get("region"), Some("eu-central-1"));
        assert_eq!(default.s3_endpoint(), None);
        let backup = of("backup").unwrap();
        assert_eq!(backup.get("aws_access_key_id"), Some("B"));
        assert_eq!(backup.get("region"), Some("eu-west-1"));
        assert_eq!(backup.get("s3.addressing_style"), Some("path"));
        assert_eq!(backup.s3_endpoint(), Some("http://127.0.0.1:9000"));
        assert_eq!(of("other"), None);
    }

    #[test]
    fn a_profile_that_was_named_must_be_there() {
        let none = |name: &str| (name == "AWS_PROFILE").then(|| "x".to_owned());
        assert_eq!(Profile::load(none).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(Profile::load(|_| None).unwrap(), Profile::default());
    }
}
