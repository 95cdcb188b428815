//! What opens encrypted repositories, and what can be typed after `imgsnap key`.

use clap::{Args as ClapArgs, Subcommand, ValueHint};
use std::path::PathBuf;

/// What opens the repository.
#[derive(ClapArgs, Clone, Default)]
pub struct KeyOptions {
    /// Key file of an encrypted repository: 32 bytes, 64 hexadecimal digits, or a recovery text [default:
    /// IMGSNAP_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key_file: Option<PathBuf>,
    /// File whose first line is the passphrase of an encrypted repository [default: IMGSNAP_PASSWORD_FILE,
    /// or else the passphrase in IMGSNAP_PASSWORD]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        conflicts_with = "key_file"
    )]
    pub password_file: Option<PathBuf>,
    /// Read the passphrase from a file descriptor
    #[arg(
        long,
        global = true,
        value_name = "FD",
        conflicts_with_all = ["key_file", "password_file"]
    )]
    pub password_fd: Option<i32>,
    /// Run a command that prints the passphrase
    #[arg(
        long,
        global = true,
        value_name = "CMD",
        conflicts_with_all = ["key_file", "password_file", "password_fd"]
    )]
    pub password_command: Option<String>,
}

/// Who owns the repository.
#[derive(ClapArgs, Clone, Default)]
pub struct OwnerOptions {
    /// Public key of the owner, as received from the owner; snapshots are dropped only with its signature
    // As it is: what it is not must not be said again, if it is the private one.
    #[arg(long, global = true, value_name = "KEY")]
    pub owner_key: Option<String>,
    /// File with the owner's private key, on the owner's host [default: IMGSNAP_OWNER_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub owner_key_file: Option<PathBuf>,
}

/// What is to open it from now on.
#[derive(ClapArgs, Clone)]
pub struct NewKey {
    /// New key file: 32 bytes or 64 hexadecimal digits
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub new_key_file: Option<PathBuf>,
    /// File whose first line is the new passphrase [default: prompt for it]
    #[arg(
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        conflicts_with = "new_key_file"
    )]
    pub new_password_file: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum Key {
    /// List the key slots, which open the repository
    List,
    /// Add a passphrase or key file that opens the repository
    Add {
        #[command(flatten)]
        new: NewKey,
    },
    /// Remove a key slot, given by its id or a prefix of the id
    ///
    /// Anyone who has a copy of the slot and its passphrase or key file keeps access to the master key: in
    /// that case, move to a new repository (docs/security.md).
    Remove {
        /// Id of the slot, as shown by "key list"
        slot: String,
    },
    /// Replace the passphrase or key file in use with another one
    Change {
        #[command(flatten)]
        new: NewKey,
    },
    /// Print the recovery text, which is sufficient to open the repository
    Export {
        /// Write it to a new file instead
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
    },
    /// Show or set the owner of the repository, who alone may drop snapshots
    Owner {
        #[command(subcommand)]
        verb: Option<OwnerVerb>,
    },
    /// Add a passphrase or key file by means of the recovery text
    Import {
        /// File that contains the recovery text
        #[arg(value_hint = ValueHint::FilePath)]
        recovery: PathBuf,
        #[command(flatten)]
        new: NewKey,
    },
}

#[derive(Subcommand)]
pub enum OwnerVerb {
    /// Set the first owner of the repository: a new key in a new file, or the key in an existing file
    Create {
        /// File for the private key
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Change the owner; requires the key of the present owner
    Change {
        /// File for the new private key
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Sign what hosts without the owner key have added
    Sign,
}
