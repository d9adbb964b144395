"""The Mara pipeline `load_marketing_data`, which calls marketing-data-service.

It keeps the id of the pipeline that it replaces, so pipelines downstream stay
the same. The service loads the tables that the old pipeline dropped, created and
copied.
"""

from mara_pipelines.commands.python import RunFunction
from mara_pipelines.pipelines import Pipeline, Task

from ..marketing_data_service import load

pipeline = Pipeline(
    id='load_marketing_data',
    description='Loads closed deals and marketing qualified leads through marketing-data-service',
    labels={'Schema': 'm_data'})

pipeline.add(
    Task(id='load',
         description='Loads the tables from one snapshot of the source, and waits until the load ends',
         commands=[RunFunction(load, args=['marketing'])]))
