//! Which objects a host may name.

use crate::base::error::{Error, ErrorKind, Result};
use crate::repo::manifest::{ImageFile, check_name};
use crate::repo::top;
use crate::store::sealed::{is_sealed_name, is_slot};

/// An object of a repository, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Object<'a> {
    /// Beside the images: the configuration and its marker.
    Config,
    /// Beside the images: plans, and what was written by a probe.
    Top,
    /// In the folder of an image.
    Of(&'a str, ImageFile),
}

fn none(name: &str) -> Error {
    let what = format!("\"{}\" is not an object of a repository", name.escape_debug());
    Error::new(ErrorKind::Auth, what)
}

/// What an object is, if it is one of ours.
///
/// # Errors
/// `Auth`.
pub(super) fn object(name: &str) -> Result<Object<'_>> {
    let Some((image, file)) = name.split_once('/') else {
        let is_config = name == top::MARKER || top::config_number(name).is_some() || is_slot(name);
        return match () {
            () if is_config => Ok(Object::Config),
            () if top::is_of_repository(name) || is_temporary(name) => Ok(Object::Top),
            () => Err(none(name)),
        };
    };
    if !is_image(image) {
        return Err(none(name));
    }
    let file = ImageFile::of(file).filter(|_| !file.contains('/')).ok_or_else(|| none(name))?;
    Ok(Object::Of(image, file))
}

/// True for what the folder of an image may be called.
fn is_image(name: &str) -> bool {
    check_name(name).is_ok() || is_sealed_name(name)
}

/// True for an object at the top that was being written.
fn is_temporary(name: &str) -> bool {
    crate::repo::manifest::temporary_of(name).is_some_and(top::is_of_repository)
}

/// Checks the name of a folder; empty for the top.
///
/// # Errors
/// `Auth`.
pub(super) fn folder(name: &str) -> Result<()> {
    match name.is_empty() || is_image(name) {
        true => Ok(()),
        false => Err(none(name)),
    }
}

/// Checks the name of a lock.
///
/// # Errors
/// `Auth`.
pub(super) fn lock(name: &str) -> Result<()> {
    match object(name)? {
        Object::Of(_, ImageFile::Lock) => Ok(()),
        _ => Err(none(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_of_repositories_are_named() {
        let delta = "18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291.delta";
        assert_eq!(object("repository.toml").unwrap(), Object::Config);
        assert_eq!(object("config.000003").unwrap(), Object::Config);
        let slot = "key.18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291";
        assert_eq!(object(slot).unwrap(), Object::Config);
        let sealed =
            "ivyr5hqporlogeu2fzjjkwgclcmjuud53gkfbfbkyxpez23umehlw7r7kuwo2w7737wghge2u77ki";
        folder(sealed).unwrap();
        folder(&sealed.repeat(4)).unwrap_err();
        let plan = "plan.18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291";
        assert_eq!(object(plan).unwrap(), Object::Top);
        assert_eq!(object(&format!("vm/{delta}")).unwrap(), Object::Of("vm", ImageFile::Delta));
        lock("vm/write.lock").unwrap();
        folder("").unwrap();
        for bad in [
            "",
            "x",
            "../config.000001",
            "vm/../config.000001",
            "/etc/passwd",
            "vm//etc/passwd",
            "vm/x",
            "vm/x.delta",
            ".ssh/authorized_keys",
            "vm/manifest.1",
            &format!("../{delta}"),
            &format!("a/b/{delta}"),
            &format!("vm/{delta}/x"),
        ] {
            assert_eq!(object(bad).unwrap_err().kind(), ErrorKind::Auth, "{bad}");
        }
        for bad in ["..", ".", ".ssh", "a/b", "config.000001"] {
            assert_eq!(folder(bad).unwrap_err().kind(), ErrorKind::Auth, "{bad}");
        }
        assert!(lock("vm/manifest.000001").is_err());
    }
}
