//! Owner, mode and extended attributes of an image file: what a snapshot remembers beside its bytes.
//!
//! They are given back from a manifest that an enemy may have written. So there is no way to express
//! setuid, a capability or a security label: of the mode only the permissions count, and of the extended
//! attributes only `user.*` and the access control list. That is checked when a manifest is read, and again
//! when a file gets them.

use crate::base::ownership::set_owner;
use crate::base::sys::{attribute, attribute_names, remove_attribute, set_attribute};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// Bytes of names and values that a snapshot remembers.
pub const MAX_REMEMBERED_BYTES: usize = 4096;

/// The access control list, in the kernel's binary form.
const ACCESS_LIST: &CStr = c"system.posix_acl_access";
const USER: &str = "user.";
/// What this program marks its own files with: a restored image is no clone.
const OWN: &str = "user.imgsnap.";
const MAX_NAME_BYTES: usize = 255;

const PERMISSIONS: u32 = 0o777;
/// Permissions of the group; of a file with an access control list, the most that the list gives to others
/// than the owner.
const OF_GROUP: u32 = 0o070;
const OF_OTHERS: u32 = 0o007;

/// Owner, group, permissions and extended attributes of an image file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct FileAttributes {
    /// User id of its owner.
    pub uid: u32,
    /// Id of its group.
    pub gid: u32,
    /// Permissions: the lowest nine bits of its mode.
    pub mode: u32,
    /// Extended attributes: the access control list, and those of users.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// What could not be given to a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NotGiven {
    /// The caller keeps it.
    pub owner: bool,
    /// Its own one has no access then.
    pub group: bool,
    /// Names of extended attributes.
    pub xattrs: Vec<String>,
}

impl FileAttributes {
    /// Of an open file; none of a device, or if it cannot be asked.
    pub fn of(file: &File) -> Option<Self> {
        let meta = file.metadata().ok().filter(|meta| meta.is_file())?;
        let mut attributes = Self {
            uid: meta.uid(),
            gid: meta.gid(),
            mode: meta.mode() & PERMISSIONS,
            xattrs: BTreeMap::new(),
        };
        // By its name: there may be more names than can be listed.
        match attribute(file, ACCESS_LIST) {
            Ok(list) => attributes.xattrs = [(access_list(), list)].into(),
            Err(e) if is_absent(&e) => {}
            Err(_) => attributes.lose_access_list(),
        }
        // A file system without them has none, and what cannot be read is of no use.
        for name in attribute_names(file).unwrap_or_default() {
            if let Ok(text) = name.to_str()
                && text != access_list()
                && is_remembered(text)
                && let Ok(value) = attribute(file, &name)
            {
                attributes.xattrs.insert(text.to_owned(), value);
            }
        }
        Some(attributes)
    }

    /// Leaves out what is more than a snapshot remembers: the access control list last. Gives the names.
    pub fn limit(&mut self) -> Vec<String> {
        let mut left_out = Vec::new();
        while self.xattr_bytes() > MAX_REMEMBERED_BYTES
            && let Some((name, _)) = self.xattrs.pop_last()
        {
            left_out.push(name);
        }
        if left_out.contains(&access_list()) {
            self.lose_access_list();
        }
        left_out
    }

    fn xattr_bytes(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Without the list, the whole group would be allowed what it allowed to some, and some what it denied
    /// them.
    fn lose_access_list(&mut self) {
        self.mode &= !(OF_GROUP | OF_OTHERS);
    }

    /// Permissions that are withheld from a file without the group. Its members count as others then, who get
    /// no more than they had.
    fn permissions_by_group(&self) -> u32 {
        OF_GROUP | (OF_OTHERS & !(self.mode >> 3))
    }

    /// Gives them to a new file of mode 0600, as far as the caller may. At no time can anybody but the caller
    /// read it who could not read the file that they are of.
    ///
    /// # Errors
    /// If the mode cannot be set, or owner and group for another reason than that the caller may not.
    pub fn give_to(&self, file: &File) -> io::Result<NotGiven> {
        let mut not_given = NotGiven::default();
        // One that the folder gave to it.
        match remove_attribute(file, ACCESS_LIST) {
            Err(e) if !is_absent(&e) => return Err(e),
            _ => {}
        }
        let mut give = |name: &str, value: &[u8]| {
            let is_given = CString::new(name).is_ok_and(|n| set_attribute(file, &n, value).is_ok());
            if !is_given {
                not_given.xattrs.push(name.to_owned());
            }
        };
        // As long as the caller may write to it.
        let is_of_user = |name: &str| name.starts_with(USER) && is_remembered(name);
        for (name, value) in self.xattrs.iter().filter(|(name, _)| is_of_user(name)) {
            give(name, value);
        }
        let list = self.xattrs.get(&access_list());
        let is_group_given = set_owner(file, None, Some(self.gid))?;
        let withheld = match list {
            // Until the list says who has access.
            Some(_) => OF_GROUP | OF_OTHERS,
            None if is_group_given => 0,
            None => self.permissions_by_group(),
        };
        file.set_permissions(Permissions::from_mode(self.mode & PERMISSIONS & !withheld))?;
        if let Some(list) = list.filter(|_| is_group_given) {
            give(&access_list(), list);
        }
        // Last: all before is for the owner to do.
        let is_owner_given = set_owner(file, Some(self.uid), None)?;
        (not_given.owner, not_given.group) = (!is_owner_given, !is_group_given);
        Ok(not_given)
    }
}

impl NotGiven {
    /// What is worth a warning: whoever restores a file of somebody else knows whose it is.
    pub fn describe(&self, attributes: &FileAttributes) -> Option<String> {
        let is_for_owner_alone = attributes.mode & (OF_GROUP | OF_OTHERS) == 0;
        let group = (self.group && !is_for_owner_alone)
            .then(|| format!("the group {}, so its own group has no access", attributes.gid));
        let xattrs = (!self.xattrs.is_empty())
            .then(|| format!("the extended attributes {}", self.xattrs.join(", ")));
        let all: Vec<String> = group.into_iter().chain(xattrs).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// True if everything was given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn access_list() -> String {
    ACCESS_LIST.to_string_lossy().into_owned()
}

fn is_remembered(name: &str) -> bool {
    let is_of_user = name.starts_with(USER) && name.len() > USER.len() && !name.starts_with(OWN);
    let is_name = name.len() <= MAX_NAME_BYTES && !name.contains('\0');
    name == access_list() || (is_of_user && is_name)
}

/// The file has none of that name, or its file system has none at all.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ENOSYS))
}

/// As they stand in a manifest (FORMAT.md J14).
#[derive(Serialize, Deserialize)]
struct Wire {
    uid: u32,
    gid: u32,
    /// Four octal digits.
    mode: String,
    /// Values as hexadecimal digits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
}

impl From<FileAttributes> for Wire {
    fn from(attributes: FileAttributes) -> Self {
        let FileAttributes { uid, gid, mode, xattrs } = attributes;
        let hex = |value: Vec<u8>| value.iter().map(|byte| format!("{byte:02x}")).collect();
        let xattrs = xattrs.into_iter().map(|(name, value)| (name, hex(value))).collect();
        Self { uid, gid, mode: format!("{mode:04o}"), xattrs }
    }
}

impl TryFrom<Wire> for FileAttributes {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        let Wire { uid, gid, mode, xattrs } = wire;
        let is_octal = mode.len() == 4 && mode.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode =
            u32::from_str_radix(&mode, 8).ok().filter(|mode| is_octal && *mode <= PERMISSIONS);
        let mode = mode.ok_or("a mode must be four octal digits of permissions")?;
        // To the kernel that number means that nothing is changed.
        if uid == u32::MAX || gid == u32::MAX {
            return Err("there is no such user or group");
        }
        if !xattrs.keys().all(|name| is_remembered(name)) {
            return Err("unsupported extended attribute");
        }
        let values = xattrs.into_iter().map(|(name, text)| Some((name, from_hex(&text)?)));
        let xattrs =
            values.collect::<Option<_>>().ok_or("a value must be pairs of hexadecimal digits")?;
        let attributes = Self { uid, gid, mode, xattrs };
        match attributes.xattr_bytes() {
            ..=MAX_REMEMBERED_BYTES => Ok(attributes),
            _ => Err("too many extended attributes"),
        }
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    if !text.len().is_multiple_of(2) || !text.bytes().all(is_hex) {
        return None;
    }
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_a_manifest_may_say_of_a_file() {
        let plain = |mode: Value| json!({ "uid": 0, "gid": 5, "mode": mode });
        let with = |name: &str, value: &str| {
            let xattrs = json!({ (name): value });
            json!({ "uid": 0, "gid": 5, "mode": "0640", "xattrs": xattrs })
        };
        let long = "0".repeat(2 * MAX_REMEMBERED_BYTES);
        for (value, is_known) in [
            (plain("0640".into()), true),
            (plain("0000".into()), true),
            (plain("0777".into()), true),
            (plain("4755".into()), false),
            (plain("1777".into()), false),
            (plain("640".into()), false),
            (plain("+640".into()), false),
            (plain("0648".into()), false),
            (plain(416.into()), false),
            (json!({ "uid": u32::MAX, "gid": 5, "mode": "0640" }), false),
            (json!({ "uid": 0, "gid": -1, "mode": "0640" }), false),
            (json!({ "uid": 0, "mode": "0640" }), false),
            (with("user.x", "00ff"), true),
            (with("system.posix_acl_access", ""), true),
            (with("user.x", "0"), false),
            (with("user.x", "0F"), false),
            (with("user.x", "+f"), false),
            (with("user.x", &long), false),
            (with("user.", ""), false),
            (with("user.a\0b", ""), false),
            (with("user.imgsnap.owner", ""), false),
            (with("security.capability", ""), false),
            (with("trusted.overlay.opaque", ""), false),
            (with("system.posix_acl_default", ""), false),
        ] {
            let read = serde_json::from_value::<FileAttributes>(value.clone());
            assert_eq!(read.is_ok(), is_known, "{value}");
            if let Ok(read) = read {
                assert_eq!(serde_json::to_value(read).unwrap(), value, "as it was read");
            }
        }
    }

    #[test]
    fn what_is_too_much_is_left_out_and_without_the_list_only_the_owner_has_access() {
        let attributes = |xattrs: &[(&str, usize)]| FileAttributes {
            uid: 0,
            gid: 0,
            mode: 0o664,
            xattrs: xattrs.iter().map(|(name, bytes)| ((*name).into(), vec![0; *bytes])).collect(),
        };
        let list = "system.posix_acl_access";
        for (xattrs, wanted, mode) in [
            (&[(list, 44), ("user.a", 100)][..], &[][..], 0o664),
            (&[(list, 44), ("user.a", 4000), ("user.b", 100)], &["user.b"], 0o664),
            (&[(list, 5000), ("user.a", 1)], &["user.a", list], 0o600),
        ] {
            let mut attributes = attributes(xattrs);
            assert_eq!(attributes.limit(), wanted);
            assert_eq!(attributes.mode, mode, "{xattrs:?}");
        }
    }

    #[test]
    fn neither_setuid_nor_a_capability_is_given_to_a_file() {
        let file = tempfile::tempfile().unwrap();
        let own = file.metadata().unwrap();
        let xattrs = ["security.capability", "user.imgsnap.owner", "trusted.x"];
        let attributes = FileAttributes {
            uid: own.uid(),
            gid: own.gid(),
            mode: 0o6755,
            xattrs: xattrs.map(|name| (name.to_owned(), vec![1])).into(),
        };
        assert!(attributes.give_to(&file).unwrap().is_empty());
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o755);
        assert_eq!(FileAttributes::of(&file).unwrap().xattrs, BTreeMap::new());
        let names = attribute_names(&file).unwrap_or_default();
        assert!(names.iter().all(|name| !xattrs.contains(&name.to_str().unwrap())), "{names:?}");
    }
}
