//! Images by name.

use super::services::images::v1 as api;
use super::services::images::v1::images_client::ImagesClient;
use super::{Containerd, Error, descriptor, error, types};
use crate::oci::Descriptor;

/// An image as containerd has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// Its index or manifest; annotations are left out.
    pub target: Descriptor,
}

impl Containerd {
    fn images(&self) -> ImagesClient<super::Calls> {
        let (channel, headers) = self.calls();
        ImagesClient::with_interceptor(channel, headers)
    }

    /// The image of that name, if there is one.
    ///
    /// # Errors
    /// containerd does not answer, or with something that is no image.
    pub async fn image(&self, name: &str) -> Result<Option<Image>, Error> {
        let request = api::GetImageRequest {
            name: name.to_owned(),
        };
        let failed = self.failed(&format!("looking for image {name}"));
        let answer = self.images().get(request).await.map_err(failed);
        let Some(answer) = error::if_found(answer)? else {
            return Ok(None);
        };
        let target = answer.into_inner().image.and_then(|image| image.target);
        let target = target.unwrap_or_default();
        let digest = target.digest.parse().map_err(|_| {
            let status = tonic::Status::internal(format!("its digest is {:?}", target.digest));
            self.failed(&format!("looking for image {name}"))(status)
        })?;
        Ok(Some(Image {
            name: name.to_owned(),
            target: Descriptor {
                media_type: target.media_type.into(),
                digest,
                size: u64::try_from(target.size).unwrap_or(0),
                annotations: std::collections::BTreeMap::new(),
                platform: None,
                extra: serde_json::Map::new(),
            },
        }))
    }

    /// Gives an image its name, whatever had it before. Its labels stay.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn name_image(&self, name: &str, target: &Descriptor) -> Result<(), Error> {
        let image = api::Image {
            name: name.to_owned(),
            target: Some(descriptor(target)),
            ..api::Image::default()
        };
        let doing = format!("naming image {name}");
        let create = api::CreateImageRequest {
            image: Some(image.clone()),
        };
        let created = self.images().create(create).await;
        match created.map_err(self.failed(&doing)) {
            Err(error) if error.is_exists() => {}
            other => return other.map(drop),
        }
        let update = api::UpdateImageRequest {
            image: Some(image),
            update_mask: Some(types::Fields {
                paths: vec!["target".to_owned()],
            }),
        };
        let updated = self.images().update(update).await;
        updated.map(drop).map_err(self.failed(&doing))
    }
}
