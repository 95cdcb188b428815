//! What opens encrypted repositories, and what can be typed after `imgsnap key`.

use clap::{Args as ClapArgs, Subcommand, ValueHint};
use std::path::PathBuf;

/// What opens the repository.
#[derive(ClapArgs, Clone, Default)]
pub struct KeyOptions {
    /// Open an encrypted repository with a file: 32 bytes, 64 hexadecimal digits, or a recovery text;
    /// otherwise IMGSNAP_KEY_FILE
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key_file: Option<PathBuf>,
    /// Open it with the passphrase in the first line of a file; otherwise IMGSNAP_PASSWORD_FILE or
    /// IMGSNAP_PASSWORD
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
    /// The owner of the repository, as the owner has told you: only what that one signs may drop anything
    // As it is: what it is not must not be said again, if it is the private one.
    #[arg(long, global = true, value_name = "KEY")]
    pub owner_key: Option<String>,
    /// The private key of the owner, on the owner's host; otherwise IMGSNAP_OWNER_KEY_FILE
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub owner_key_file: Option<PathBuf>,
}

/// What is to open it from now on.
#[derive(ClapArgs, Clone)]
pub struct NewKey {
    /// A key file: 32 bytes, or 64 hexadecimal digits
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub new_key_file: Option<PathBuf>,
    /// The passphrase in the first line of a file; otherwise it is asked for
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
    /// List what opens the repository
    List,
    /// Let another passphrase or key file open the repository, too
    Add {
        #[command(flatten)]
        new: NewKey,
    },
    /// Take away what opens the repository: a slot, by its id or the beginning of it
    ///
    /// Whoever has copied the slot and knows what opens it has the master key for ever: move to a new
    /// repository then (docs/security.md).
    Remove {
        /// As list shows it
        slot: String,
    },
    /// Put another passphrase or key file in the place of the one that is given
    Change {
        #[command(flatten)]
        new: NewKey,
    },
    /// Print the recovery text, which opens the repository without anything else
    Export {
        /// Write it to a new file instead
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
    },
    /// Show the owner of a repository, or make one: who alone may drop snapshots
    Owner {
        #[command(subcommand)]
        verb: Option<OwnerVerb>,
    },
    /// Let a passphrase or key file open the repository, by its recovery text
    Import {
        /// A file with the recovery text
        #[arg(value_hint = ValueHint::FilePath)]
        recovery: PathBuf,
        #[command(flatten)]
        new: NewKey,
    },
}

#[derive(Subcommand)]
pub enum OwnerVerb {
    /// Make the owner of a repository that has none: a new key in a new file, or the one in a file
    Create {
        /// The file with the private key
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Name another owner, with the key of the one before
    Change {
        /// The file with the new private key
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Sign what hosts without the owner key have added
    Sign,
}
