//! How a bucket is reached, and who asks: by the variables and files that other programs for it read.

use super::errors::said;
use super::profile::Profile;
use crate::base::error::{Error, ErrorKind, Result};
use crate::store::url::{RemoteKind, RemoteUrl};
use async_trait::async_trait;
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsCredential};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ClientOptions, CredentialProvider, ObjectStore, RetryConfig};
use serde::Deserialize;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How long nothing may come from a server that is to answer. A part is sent within that, too.
const SILENCE: Duration = Duration::from_secs(300);
const CONNECT: Duration = Duration::from_secs(15);
/// How long a program may take that prints credentials.
const PROCESS: Duration = Duration::from_secs(60);

fn options() -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(SILENCE)
        .with_connect_timeout(CONNECT)
        .with_pool_idle_timeout(Duration::from_secs(30))
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            base: 2.0,
        },
        max_retries: 7,
        retry_timeout: Duration::from_secs(600),
    }
}

/// The client for a bucket or container.
pub(super) type Client = (Arc<dyn ObjectStore>, Option<Arc<AmazonS3>>);

/// The client for a bucket or container, and that of S3 if it is one. Nothing is asked yet.
///
/// # Errors
/// `InvalidInput`, `NotFound` or `Auth` if what the environment says cannot be used.
pub(super) fn connect(url: &RemoteUrl) -> Result<Client> {
    match url.kind {
        RemoteKind::Gcs => {
            // Where it is stands in the file of the account.
            let is_http = variable("GOOGLE_ALLOW_HTTP").is_some_and(|allow| allow == "true");
            let builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(&url.host)
                .with_client_options(options().with_allow_http(is_http))
                .with_retry(retry());
            Ok((Arc::new(builder.build().map_err(|e| unusable(url, e))?), None))
        }
        RemoteKind::Azure => {
            let endpoint = variable("AZURE_STORAGE_ENDPOINT");
            let is_http = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"))
                || variable("AZURE_STORAGE_USE_EMULATOR").is_some();
            let builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(&url.host)
                .with_client_options(options().with_allow_http(is_http))
                .with_retry(retry());
            Ok((Arc::new(builder.build().map_err(|e| unusable(url, e))?), None))
        }
        _ => {
            let s3 = Arc::new(s3(url)?.build().map_err(|e| unusable(url, e))?);
            Ok((s3.clone(), Some(s3)))
        }
    }
}

fn s3(url: &RemoteUrl) -> Result<AmazonS3Builder> {
    let profile = Profile::load(variable)?;
    let endpoint = variable("AWS_ENDPOINT_URL_S3")
        .or_else(|| variable("AWS_ENDPOINT_URL"))
        .or_else(|| profile.s3_endpoint().map(str::to_owned));
    // Without encryption only where the endpoint says so.
    let is_http = endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&url.host)
        .with_client_options(options().with_allow_http(is_http))
        .with_retry(retry());
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let has_region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")).is_some();
    if let Some(region) = profile.get("region").filter(|_| !has_region) {
        builder = builder.with_region(region);
    }
    // What the environment names goes first, as everywhere.
    let named = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"];
    if named.into_iter().any(|name| variable(name).is_some()) {
        return Ok(builder);
    }
    for setting in ["role_arn", "sso_session", "sso_start_url", "credential_source"] {
        if profile.get(setting).is_some() {
            let what = format!("{url}: AWS profiles with {setting} are not supported");
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint("let credential_process name a program that prints them (docs/stores.md)"));
        }
    }
    if let (Some(id), Some(secret)) =
        (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key"))
    {
        let builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        return Ok(match profile.get("aws_session_token") {
            Some(token) => builder.with_token(token),
            None => builder,
        });
    }
    if let Some(command) = profile.get("credential_process") {
        return Ok(builder.with_credentials(Arc::new(ByProcess::new(command))));
    }
    Ok(builder)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn unusable(url: &RemoteUrl, error: object_store::Error) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{url}: {}", said(&error)))
        .hint("check the variables for its endpoint and credentials (docs/stores.md)")
}

/// Credentials that a program prints (docs.aws.amazon.com, "Sourcing credentials with an external process").
#[derive(Debug)]
struct ByProcess {
    command: String,
    /// The last ones, and until when they hold.
    last: Mutex<Option<(Arc<AwsCredential>, Option<Instant>)>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    version: u32,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<jiff::Timestamp>,
}

impl ByProcess {
    fn new(command: &str) -> Self {
        Self { command: command.to_owned(), last: Mutex::new(None) }
    }

    fn run(command: &str) -> std::result::Result<Printed, String> {
        let out = Command::new("sh").args(["-c", command]).output().map_err(|e| e.to_string())?;
        if !out.status.success() {
            return Err(format!("it failed ({})", out.status));
        }
        let printed: Printed = serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())?;
        match printed.version {
            1 => Ok(printed),
            other => Err(format!("its version is {other}, and not 1")),
        }
    }
}

#[async_trait]
impl CredentialProvider for ByProcess {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut last = self.last.lock().await;
        if let Some((credential, until)) = &*last
            && until.is_none_or(|until| Instant::now() < until)
        {
            return Ok(credential.clone());
        }
        let failed = |why: String| object_store::Error::Generic {
            store: "S3",
            source: format!("credential_process of the AWS profile: {why}").into(),
        };
        let command = self.command.clone();
        let run = tokio::task::spawn_blocking(move || Self::run(&command));
        let printed = tokio::time::timeout(PROCESS, run).await;
        let printed = printed.map_err(|_| failed("it does not finish".into()))?;
        let printed = printed.map_err(|e| failed(e.to_string()))?.map_err(failed)?;
        // A minute early: requests take their time.
        let left = printed.expiration.map(|until| {
            let left = until.duration_since(jiff::Timestamp::now());
            Duration::try_from(left).unwrap_or_default().saturating_sub(Duration::from_secs(60))
        });
        let credential = Arc::new(AwsCredential {
            key_id: printed.access_key_id,
            secret_key: printed.secret_access_key,
            token: printed.session_token,
        });
        *last = Some((credential.clone(), left.map(|left| Instant::now() + left)));
        Ok(credential)
    }
}
