from transformers import Pipeline
class PromptCamPipeline(Pipeline):
    pass
